"""A whole run: the stages of an order one after the other, each from the checkpoints of others; then a bundle.

OUT/config.json  OUT/STAGE/{log.jsonl, skipped.jsonl, mixture.json, checkpoint-*, curves.png}  OUT/bundle/
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..bundle.folder import CARD
from ..data.record import Dataset
from ..errors import CheckpointError, UsageError
from ..model import NanoEmoX
from . import checkpoint, optimizer
from .config import TrainConfig, to_dict
from .examples import Reader
from .features import Features
from .initial_model import build_model, trainable_names
from .learner import use_liger
from .log import write_json
from .loop import Job, StageRun, Stop
from .report import draw_curves
from .sampler import Mixture, Records
from .stages import Plan, Stage, joint_stage, plan

# Keys that a resumed run may change: they decide where and how fast, not what comes out.
_FREE: tuple[str, ...] = (
    "name",
    "order",
    "out",
    "data",
    "datasets",
    "stages",
    "joint",
    "device",
    "keep",
    "keep_epochs",
)
_FREE += ("checkpoint_every", "cache", "workers", "max_bad_share", "gradient_checkpointing", "liger", "fsdp")


def the_plan(config: TrainConfig, datasets: Mapping[str, Records]) -> Plan:
    """Stages of the config's order, `joint` built from the others. Raises UsageError."""
    stages: dict[str, Stage] = dict(config.stages)
    if config.order == "joint":
        shares: dict[str, dict[str, float]] = {}
        if config.joint.variant == "all_data":
            shares = {
                name: Mixture(stage, datasets, config.seed).by_set() for name, stage in config.stages.items()
            }
        stages["joint"] = joint_stage(config.stages, config.joint, shares)
    return plan(config.order, stages)


def train(
    config: TrainConfig,
    datasets: Mapping[str, Dataset],
    reader: Reader,
    *,
    stage: str | None = None,
    resume: bool = False,
) -> Path:
    """Train; returns the bundle, or the stage's last checkpoint where the order's last stage was not among the trained.

    Args:
        datasets: by the names that the config's stages use.
        reader: (sample, modality set) -> Clip.
        stage: only this one; those that it starts from must be finished.
        resume: go on from what `config.out` holds.

    Raises:
        UsageError: an option or a combination that does not exist; `out` holds a run and `resume` is not asked for.
        CheckpointError: no weights to start from; a checkpoint that is damaged or of another configuration.
        MediaError: too many samples that cannot be read.
        ValueError: no room for a checkpoint, a loss that is not finite.
        Interrupted: by a signal, with a checkpoint written.
    """
    steps = the_plan(config, datasets)
    chosen = [one for one in steps.stages if stage in (None, one.name)]
    if not chosen:
        raise UsageError(
            f"stage {stage!r} is not in order {config.order}: it has {', '.join(steps.order.stages)}"
        )
    for one in chosen:
        Mixture(one, datasets, config.seed)  # its complaints, before anything is loaded
    out = Path(config.out)
    accelerator = _accelerator(config, chosen)
    if accelerator.is_main_process:
        _claim(out, config, [one.name for one in chosen], resume)
    accelerator.wait_for_everyone()
    precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32

    def built() -> NanoEmoX:
        with accelerator.main_process_first():
            made = build_model(config.model, out / "base", dtype=precision, seed=config.seed).to(
                accelerator.device
            )
        if config.liger:
            use_liger(made)
        return made

    with Stop() as stop:
        model = built()
        fresh = {
            name: model.get_parameter(key).detach().cpu().clone()
            for name, key in trainable_names(model).items()
        }
        if (plugin := getattr(accelerator.state, "fsdp_plugin", None)) is not None:
            plugin.transformer_cls_names_to_wrap = [type(model.language.base.model.layers[0]).__name__]
        features = Features(model, Path(config.cache) if config.cache else None)
        job = Job(config, accelerator, model, features, datasets, reader, stop)
        identity = _identity(config, model, config.batch * accelerator.num_processes)
        written = out
        for one in chosen:
            folder = out / one.name
            if accelerator.is_main_process:
                checkpoint.sweep(folder)
            accelerator.wait_for_everyone()
            found = checkpoint.latest(folder)
            sets = {
                source.set: config.datasets[source.set]
                for source in one.data
                if source.set in config.datasets
            }
            read = {
                name: {"format": of.format, "split": of.split, "options": to_dict(of.options)}
                for name, of in sets.items()
            }
            mine = {
                **identity,
                "stage": to_dict(one),
                "starts": list(steps.starts[one.name]),
                "datasets": read,
            }
            if found is not None:
                checkpoint.check_config(found, mine)
                if found.state["done"]:
                    written = found.folder
                    continue
            starts = _starting_values(out, steps, one.name)  # complains before a model is touched
            if accelerator.is_main_process:
                _write_config(out, config)  # of what is trained here, so not before it is known to go on
            if config.fsdp and written != out:  # the one before is in shards
                job.model = features.model = model = built()
            _assign(model, fresh | starts)
            written = StageRun(job, one, folder, mine).run()
            if accelerator.is_main_process:
                draw_curves(folder, Mixture(one, datasets, config.seed).cells())
        if features.disabled and accelerator.is_main_process:
            print(f"nanoemox: {features.disabled}", file=sys.stderr)
        if chosen[-1] is steps.stages[-1] and accelerator.is_main_process:
            if config.fsdp:
                model = build_model(config.model, out / "base", dtype=precision, seed=config.seed)
            last = checkpoint.latest(out / chosen[-1].name)
            assert last is not None
            _assign(model, fresh | _starting_values(out, steps, chosen[-1].name) | last.weights())
            written = _bundle(model, out, steps)
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return written


def _accelerator(config: TrainConfig, stages: list[Stage]) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' is not available here: use auto or cpu")
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    low = config.precision == "bfloat16" or (config.precision == "auto" and not on_cpu)
    mixed = any(source.modalities for stage in stages for source in stage.data)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if low else "no",
        fsdp_plugin=sharding() if config.fsdp else None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=mixed)],
    )


def sharding() -> Any:
    """How accelerate shards a model: each layer of the language model, and the rest as one."""
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")


def _claim(out: Path, config: TrainConfig, stages: list[str], resume: bool) -> None:
    """`out` is new, or of this run and to be gone on with."""
    if not resume and (taken := [name for name in stages if (out / name).exists()]):
        raise UsageError(
            f"{out}: holds stage {taken[0]} already; add --resume to go on, or choose another --out"
        )
    if resume and not out.is_dir():
        raise UsageError(f"{out}: no such folder, so there is nothing to resume; leave out --resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror})") from error


def _write_config(out: Path, config: TrainConfig) -> None:
    try:
        write_json(out / "config.json", to_dict(config))
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror})") from error


def _identity(config: TrainConfig, model: NanoEmoX, batch: int) -> dict[str, Any]:
    """What a checkpoint must agree with: sizes, and every key that changes what comes out."""
    keys = {name: value for name, value in to_dict(config).items() if name not in _FREE}
    keys["model"] = {"adapters": config.model.adapters}
    return {"sizes": json.loads(json.dumps(model.config.to_dict())), **keys, "batch": batch}


def _starting_values(out: Path, steps: Plan, stage: str) -> dict[str, torch.Tensor]:
    """Tensors that the stage starts from, of stages of this run or of checkpoint folders, later ones winning."""
    values: dict[str, torch.Tensor] = {}
    names = {one.name for one in steps.stages}
    for start in steps.starts[stage]:
        if start in names:
            found = checkpoint.latest(out / start)
            if found is None or not found.state["done"]:
                raise CheckpointError(
                    f"{out / start}: stage {stage} starts from {start}, which is not finished there"
                )
        else:
            found = checkpoint.read(Path(start))
        values |= found.weights()
    return values


def _assign(model: NanoEmoX, values: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError for tensors that the model does not have, or has in another shape."""
    parameters = {name: model.get_parameter(key) for name, key in trainable_names(model).items()}
    for name, value in values.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise CheckpointError(
                f"the starting checkpoint's {name} {list(value.shape)} does not fit the model"
            )
    optimizer.assign(parameters, values)


def _bundle(model: NanoEmoX, out: Path, steps: Plan) -> Path:
    card = [f"# {model.config.name}", "", f"Trained by nanoemox in order {steps.order.name}.", ""]
    card += ["| stage | steps | data | trained |", "|---|---:|---|---|"]
    for one in steps.stages:
        sets = ", ".join(source.set for source in one.data)
        card.append(f"| {one.name} | {one.total} | {sets} | {', '.join(one.train)} |")
    model.source = None
    model.requires_grad_(False).save(out / "bundle")
    (out / "bundle" / CARD).write_text("\n".join(card) + "\n")
    return out / "bundle"
