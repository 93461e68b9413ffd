"""Stages and orders of the curriculum: records, no behaviour (architecture section 17; tasks.md 6.1 and 6.4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..errors import UsageError
from ..prompts import MODALITY_SETS
from .schedule import Schedule

# Trainable groups -> prefixes of the model's parameter names. Encoders and the language model's own weights are in
# none: they stay frozen. The face head is two groups, so that 1-1 can leave both alone (tasks.md 6.1).
GROUPS = {
    "video": ("video_branch.",),
    "audio": ("audio_branch.",),
    "fusion": ("fusion.",),
    "face_proj": ("face_head.project.",),
    "face_attention": ("face_head.query", "face_head.attn."),
    "lora": (".lora_",),  # anywhere in a name
}
ALL = tuple(GROUPS)


def group_of(parameter: str) -> str | None:
    """The trainable group of a parameter of the model, None for what is always frozen."""
    if ".lora_" in parameter:
        return "lora"
    return next((group for group, stems in GROUPS.items() if parameter.startswith(stems)), None)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set within a stage.

    Attributes:
        set: its name under `datasets`.
        weight: share of the batches, in any unit; None: in proportion to its size.
        ratio: the fraction of its records that is used, drawn once (the reference's `ratio`; no mixing weight).
        kinds: answer type -> weight; None: all that the set has, uniformly.
        modalities: a set of its own instead of the stage's.
    """

    set: str
    weight: float | None = None
    ratio: float = 1.0
    kinds: Mapping[str, float] | None = None
    modalities: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training. `steps` are optimiser steps of one epoch; rates are those of `Schedule`.

    `init` names the stages (or checkpoint folders) whose tensors it starts from, later ones winning; an order may
    chain its stages instead, and no stage is edited for that.
    """

    name: str
    data: tuple[Source, ...]
    modalities: str
    train: tuple[str, ...]
    init: tuple[str, ...] = ()
    epochs: int = 1
    steps: int = 5000
    init_lr: float = 1e-5
    min_lr: float = 1e-5
    warmup_lr: float = 5e-7
    warmup_steps: int = 5000
    legacy_epoch_offset: int = 0
    profile: str = "weights"  # how data sets are mixed: see sampler.PROFILES

    def __post_init__(self) -> None:
        for given, known, what in (
            (self.train, GROUPS, "trainable group"),
            (
                [self.modalities, *(s.modalities for s in self.data if s.modalities)],
                MODALITY_SETS,
                "modality set",
            ),
        ):
            if unknown := [name for name in given if name not in known]:
                raise UsageError(
                    f"stage {self.name}: unknown {what} {unknown[0]!r}; known are {', '.join(known)}"
                )
        if not self.data or not self.train:
            raise UsageError(f"stage {self.name}: needs at least one data set and one trainable group")
        if self.epochs < 1 or self.steps < 1:
            raise UsageError(f"stage {self.name}: epochs and steps must be at least 1")

    @property
    def total(self) -> int:
        return self.epochs * self.steps

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            epochs=self.epochs,
            steps_per_epoch=self.steps,
            init=self.init_lr,
            minimum=self.min_lr,
            warmup_start=self.warmup_lr,
            warmup_steps=self.warmup_steps,
            legacy_epoch_offset=self.legacy_epoch_offset,
        )


@dataclass(frozen=True)
class Order:
    """Stages one after the other. `chained`: each starts from all before it, whatever its own `init` says."""

    name: str
    stages: tuple[str, ...]
    chained: bool = False


P2E = ("1-1", "1-2", "2", "3")
ORDERS = {
    "p2e": Order("p2e", P2E),
    "joint": Order("joint", ("joint",)),
    "reverse": Order("reverse", ("3", "2", "1-2", "1-1"), chained=True),
}


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Everything at once (tasks.md 6.4): phase 3 data, or those of all phases in proportion to their steps."""

    variant: str = "phase3_data"
    match_steps: bool = False  # as many steps as p2e has
    init_lr: float = 1e-5
    min_lr: float = 1e-5
    warmup_lr: float = 5e-7

    def __post_init__(self) -> None:
        if self.variant not in ("phase3_data", "all_data"):
            raise UsageError(f"joint: variant {self.variant!r} is neither phase3_data nor all_data")


def joint_stage(
    stages: Mapping[str, Stage], joint: Joint, shares: Mapping[str, Mapping[str, float]]
) -> Stage:
    """The one stage of order `joint`. `shares`: stage -> data set -> share of its batches, as its profile has them."""
    last, total = stages[P2E[-1]], sum(stages[name].total for name in P2E)
    data = last.data
    if joint.variant == "all_data":
        merged: dict[tuple, Source] = {}
        for stage in (stages[name] for name in P2E):
            for source in stage.data:
                source = replace(source, modalities=source.modalities or stage.modalities)
                weight = stage.total / total * shares[stage.name][source.set]
                key = source.set, source.modalities, tuple(sorted((source.kinds or {}).items()))
                merged[key] = replace(
                    source, weight=weight + (merged[key].weight or 0 if key in merged else 0)
                )
        data = tuple(merged.values())
    epochs, steps = last.epochs, last.steps
    if joint.match_steps:
        epochs, steps = (total // steps, steps) if total % steps == 0 else (1, total)
    return replace(
        last,
        name="joint",
        data=data,
        train=ALL,
        init=(),
        epochs=epochs,
        steps=steps,
        init_lr=joint.init_lr,
        min_lr=joint.min_lr,
        warmup_lr=joint.warmup_lr,
        profile="weights" if joint.variant == "all_data" else last.profile,
    )


@dataclass(frozen=True)
class Plan:
    """The stages of a run in their order, each with the stages or folders that it starts from."""

    order: Order
    stages: tuple[Stage, ...]
    starts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def plan(order: str, stages: Mapping[str, Stage]) -> Plan:
    """`stages` holds those that the order names. Raises UsageError for an unknown order or an absent stage."""
    if order not in ORDERS:
        raise UsageError(f"order {order!r} does not exist: use {', '.join(ORDERS)}")
    chosen = ORDERS[order]
    if absent := [name for name in chosen.stages if name not in stages]:
        raise UsageError(f"order {order} needs stage {absent[0]!r}; the config has {', '.join(stages)}")
    starts = {
        name: chosen.stages[:place] if chosen.chained else stages[name].init
        for place, name in enumerate(chosen.stages)
    }
    return Plan(chosen, tuple(stages[name] for name in chosen.stages), starts)
