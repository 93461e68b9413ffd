"""Stages and orders of the curriculum: records without behaviour (docs/training.md sections 1 and 4)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import UsageError
from ..prompts import MODALITY_SETS
from .schedule import Schedule

# Trainable group -> prefixes of parameter names. Encoders and the weights of the language model are in no
# group: they stay frozen. The face head has two groups, so that stage 1-1 can leave both alone.
GROUPS = {
    "video": ("video_branch.",),
    "audio": ("audio_branch.",),
    "fusion": ("fusion.",),
    "face_proj": ("face_head.project.",),
    "face_attention": ("face_head.query", "face_head.attn."),
    "lora": (".lora_",),  # anywhere in the name
}
ALL = tuple(GROUPS)


def group_of(parameter: str) -> str | None:
    """The trainable group of a parameter of the model, None for a parameter that is always frozen."""
    if ".lora_" in parameter:
        return "lora"
    return next((group for group, prefixes in GROUPS.items() if parameter.startswith(prefixes)), None)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set within a stage (docs/training.md section 3).

    Attributes:
        set: name of the data set under `datasets`.
        weight: share of the batches, in any unit; None: in proportion to the number of records.
        ratio: fraction of the records that is used, drawn once; it is no mixing weight.
        kinds: answer type -> weight; None: all types of the data set, uniformly.
        modalities: modality set, None for the stage's.
    """

    set: str
    weight: float | None = None
    ratio: float = 1.0
    kinds: Mapping[str, float] | None = None
    modalities: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        name: name of the stage and of its folder.
        data: the data sets.
        modalities: modality set of the samples.
        train: trainable groups, keys of GROUPS.
        init: stages or checkpoint folders whose tensors the stage starts from, later ones overriding earlier
            ones. An order may chain its stages instead.
        epochs, steps: number of epochs, and optimiser steps per epoch.
        init_lr, min_lr, warmup_lr, warmup_steps, legacy_epoch_offset: see `Schedule`.
        profile: how data sets are mixed, one of sampler.PROFILES.
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
    profile: str = "weights"

    def __post_init__(self) -> None:
        sets = [self.modalities, *(source.modalities for source in self.data if source.modalities)]
        self._check_names("trainable group", self.train, GROUPS)
        self._check_names("modality set", sets, MODALITY_SETS)
        if not self.data or not self.train:
            raise UsageError(f"stage {self.name}: needs at least one data set and one trainable group")
        if self.epochs < 1 or self.steps < 1:
            raise UsageError(f"stage {self.name}: epochs and steps must be at least 1")

    def _check_names(self, what: str, names: Iterable[str], known: Collection[str]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UsageError(
                f"stage {self.name}: unknown {what} {unknown[0]!r}; known are {', '.join(known)}"
            )

    @property
    def total(self) -> int:
        """Optimiser steps of all epochs."""
        return self.epochs * self.steps

    @property
    def schedule(self) -> Schedule:
        """The learning rate."""
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
    """Names of stages in their order. `chained`: each starts from all before it, whatever its `init` is."""

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
    """The order `joint` (docs/training.md section 4).

    Attributes:
        variant: "phase3_data", or "all_data": the data sets of all phases, in proportion to their steps.
        match_steps: train as many steps as p2e.
        init_lr, min_lr, warmup_lr: see `Schedule`.
    """

    variant: str = "phase3_data"
    match_steps: bool = False
    init_lr: float = 1e-5
    min_lr: float = 1e-5
    warmup_lr: float = 5e-7

    def __post_init__(self) -> None:
        if self.variant not in ("phase3_data", "all_data"):
            raise UsageError(f"joint: variant {self.variant!r} is neither phase3_data nor all_data")


def joint_stage(
    stages: Mapping[str, Stage], joint: Joint, shares: Mapping[str, Mapping[str, float]]
) -> Stage:
    """The one stage of order `joint`.

    Args:
        stages: the stages of p2e.
        joint: its options.
        shares: stage -> data set -> share of the stage's batches; needed for "all_data".
    """
    last = stages[P2E[-1]]
    total = sum(stages[name].total for name in P2E)
    epochs, steps = last.epochs, last.steps
    if joint.match_steps:
        epochs, steps = (total // steps, steps) if total % steps == 0 else (1, total)
    all_data = joint.variant == "all_data"
    return replace(
        last,
        name="joint",
        data=_union([stages[name] for name in P2E], shares) if all_data else last.data,
        train=ALL,
        init=(),
        epochs=epochs,
        steps=steps,
        init_lr=joint.init_lr,
        min_lr=joint.min_lr,
        warmup_lr=joint.warmup_lr,
        profile="weights" if all_data else last.profile,
    )


def _union(stages: Sequence[Stage], shares: Mapping[str, Mapping[str, float]]) -> tuple[Source, ...]:
    """The sources of all stages, each stage weighted by its steps; equal sources are merged."""
    total = sum(stage.total for stage in stages)
    merged: dict[tuple, Source] = {}
    for stage in stages:
        for source in stage.data:
            source = replace(source, modalities=source.modalities or stage.modalities)
            weight = stage.total / total * shares[stage.name][source.set]
            key = source.set, source.modalities, tuple(sorted((source.kinds or {}).items()))
            if key in merged:
                weight += merged[key].weight or 0
            merged[key] = replace(source, weight=weight)
    return tuple(merged.values())


@dataclass(frozen=True)
class Plan:
    """The stages of a run in their order. `starts`: stage -> the stages or folders that it starts from."""

    order: Order
    stages: tuple[Stage, ...]
    starts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def plan(order: str, stages: Mapping[str, Stage]) -> Plan:
    """The plan of an order, given the stages by name.

    Raises UsageError if the order does not exist, or one of its stages is missing.
    """
    if order not in ORDERS:
        raise UsageError(f"order {order!r} does not exist: use {', '.join(ORDERS)}")
    chosen = ORDERS[order]
    missing = [name for name in chosen.stages if name not in stages]
    if missing:
        raise UsageError(f"order {order} needs stage {missing[0]!r}; the config has {', '.join(stages)}")
    starts = {
        name: chosen.stages[:place] if chosen.chained else stages[name].init
        for place, name in enumerate(chosen.stages)
    }
    return Plan(chosen, tuple(stages[name] for name in chosen.stages), starts)
