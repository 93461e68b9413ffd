"""Tensors that a stage starts from, and the configuration that a checkpoint must agree with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..model import NanoEmoX
from . import checkpoint, optimizer
from .config import TrainConfig, to_dict
from .initial_model import trainable_names
from .stages import Plan, Stage

# Keys that a resumed run may change: they decide where and how fast it runs, not its result. `datasets` and
# `stages` are compared for each stage.
_FREE_KEYS = {
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
    "checkpoint_every",
    "cache",
    "workers",
    "max_bad_share",
    "gradient_checkpointing",
    "liger",
    "fsdp",
}


def identity(config: TrainConfig, model: NanoEmoX, plan: Plan, stage: Stage, *, batch: int) -> dict[str, Any]:
    """JSON values of everything that changes the result of a stage.

    Args:
        config: the run.
        model: its sizes are part of the identity.
        plan: decides what the stage starts from.
        stage: the stage.
        batch: samples of all processes per micro-batch.
    """
    keys = {name: value for name, value in to_dict(config).items() if name not in _FREE_KEYS}
    keys["model"] = {"adapters": config.model.adapters}
    datasets = {}
    for source in stage.data:
        options = config.datasets.get(source.set)
        if options is not None:
            datasets[source.set] = {
                "format": options.format,
                "split": options.split,
                "options": to_dict(options.options),
            }
    return {
        "sizes": json.loads(json.dumps(model.config.to_dict())),
        **keys,
        "batch": batch,
        "stage": to_dict(stage),
        "starts": list(plan.starts[stage.name]),
        "datasets": datasets,
    }


def starting_values(out: Path, plan: Plan, stage: str) -> dict[str, Tensor]:
    """Official name -> tensor that the stage starts from, of stages of this run or of checkpoint folders.

    Later ones override earlier ones. Raises CheckpointError if a stage is not finished, or a folder is
    damaged.
    """
    values: dict[str, Tensor] = {}
    names = {candidate.name for candidate in plan.stages}
    for start in plan.starts[stage]:
        if start not in names:
            values |= checkpoint.read(Path(start)).weights()
            continue
        newest = checkpoint.latest(out / start)
        if newest is None or not newest.state["done"]:
            raise CheckpointError(
                f"{out / start}: stage {stage} starts from {start}, which is not finished there"
            )
        values |= newest.weights()
    return values


def assign(model: NanoEmoX, values: Mapping[str, Tensor]) -> None:
    """Copy values into the model. Raises CheckpointError if it lacks a tensor, or has it in another shape."""
    parameters = {name: model.get_parameter(key) for name, key in trainable_names(model).items()}
    for name, value in values.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise CheckpointError(
                f"the starting checkpoint's {name} {list(value.shape)} does not fit the model"
            )
    optimizer.assign(parameters, values)
