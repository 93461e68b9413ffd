"""Checkpoints of a stage: folders renamed into place when complete (docs/training.md section 7).

    OUT/STAGE/checkpoint-00001000/  trainable.safetensors  optimizer.safetensors  state.json

Draws and dropout are functions of the seed and the step, so no generator state is stored.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..bundle.tensors import write_safetensors
from ..errors import CheckpointError

WEIGHTS, MOMENTS, STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. `state`: step, done, sampler, config, ..."""

    folder: Path
    state: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Official name -> fp32 tensor."""
        return read_tensors(self.folder / WEIGHTS)

    def moments(self) -> dict[str, Tensor]:
        """State of the optimizer, as `optimizer.state_of` names it."""
        return read_tensors(self.folder / MOMENTS)


def folder_of(parent: Path, step: int) -> Path:
    """The folder of a stage's checkpoint."""
    return parent / f"{_PREFIX}{step:08d}"


def save(
    parent: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint.

    Args:
        parent: folder of the stage.
        weights: official name -> trained tensor.
        moments: state of the optimizer.
        state: JSON values; `step` names the folder.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: nothing of this checkpoint is left behind, and earlier ones are unchanged.
    """
    parent.mkdir(parents=True, exist_ok=True)
    final = folder_of(parent, state["step"])
    if (final / MOMENTS).is_file():
        return final  # the run was interrupted right after this checkpoint
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=parent))
    try:
        _write_tensors(temporary / WEIGHTS, weights)
        _write_tensors(temporary / MOMENTS, moments)
        with open(temporary / STATE, "w") as file:
            json.dump({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o755)
        os.rename(temporary, final)
        _sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    dtypes = {name: value.dtype for name, value in tensors.items()}
    write_safetensors(file, shapes, dtypes, tensors.__getitem__)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(parent: Path) -> dict[int, Path]:
    """Step -> its folder, in order. Folders with another suffix, such as copies, are ignored."""
    folders = sorted(parent.glob(f"{_PREFIX}[0-9]*")) if parent.is_dir() else []
    steps = {}
    for folder in folders:
        suffix = folder.name.removeprefix(_PREFIX)
        if suffix.isdecimal():
            steps[int(suffix)] = folder
    return steps


def latest(parent: Path) -> Checkpoint | None:
    """The newest checkpoint that can be resumed. Raises CheckpointError if it is damaged."""
    folders = [folder for folder in _steps(parent).values() if (folder / MOMENTS).is_file()]
    return read(folders[-1]) if folders else None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises CheckpointError if it is damaged, or of another format."""
    try:
        state = json.loads((folder / STATE).read_text())
        if state["format"] != FORMAT:
            raise CheckpointError(f"{folder}: format {state['format']}, this version reads {FORMAT}")
        missing = {"step", "done", "config"} - state.keys()
        if missing:
            raise ValueError(f"{STATE} lacks {min(missing)}")
        return Checkpoint(folder, state)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: not a checkpoint of nanoemox train, or damaged ({error}); "
            "delete the folder to go on from the one before"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError."""
    try:
        with safe_open(file, "pt") as reader:
            names = reader.keys()
            return {name: reader.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a safetensors file, or cut off ({error}); "
            "delete its folder to go on from the one before"
        ) from error


def prune(parent: Path, *, keep: int, epoch: int | None) -> None:
    """Delete all but the newest `keep` checkpoints, except the weights at every `epoch` steps (None: no)."""
    folders = _steps(parent)
    for step, folder in list(folders.items())[:-keep]:
        if epoch is not None and step % epoch == 0:
            (folder / MOMENTS).unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove incomplete checkpoints, which a killed process may leave."""
    if parent.is_dir():
        for folder in parent.glob(f".{_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, as "key was 1, is 2"."""
    changes = []
    for key in dict.fromkeys([*saved, *now]):
        before, after = saved.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key} was {before!r}, is {after!r}")
    return changes


def check_config(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the first differences, if the checkpoint is of another configuration."""
    changes = differences(checkpoint.state["config"], now)
    if changes:
        first = "; ".join(text if len(text) < 160 else text[:157] + "..." for text in changes[:3])
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.folder}: of another configuration: {first}{more}; "
            "resume with the one it was made with, or choose another --out"
        )
