"""Checkpoints of a stage: a folder that is there whole or not at all. safetensors and JSON, no pickle.

    OUT/STAGE/checkpoint-00001000/  trainable.safetensors  optimizer.safetensors  state.json

There are no generator states to keep: draws and dropout are functions of the seed and the step's number.
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
    """One that can be resumed. `state`: step, done, sampler, config, ..."""

    folder: Path
    state: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Official name -> fp32 tensor."""
        return read_tensors(self.folder / WEIGHTS)

    def moments(self) -> dict[str, Tensor]:
        return read_tensors(self.folder / MOMENTS)


def save(
    parent: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of `state["step"]`. On OSError nothing of it stays; what was there is untouched."""
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"{_PREFIX}{state['step']:08d}"
    if (final / MOMENTS).is_file():
        return final  # interrupted right after a checkpoint
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=parent))
    try:
        for name, tensors in ((WEIGHTS, weights), (MOMENTS, moments)):
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            write_safetensors(
                temporary / name, shapes, {k: v.dtype for k, v in tensors.items()}, tensors.__getitem__
            )  # fmt: skip
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


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(parent: Path) -> dict[int, Path]:
    found = parent.glob(f"{_PREFIX}[0-9]*") if parent.is_dir() else ()
    ours = [
        folder for folder in sorted(found) if folder.name.removeprefix(_PREFIX).isdecimal()
    ]  # copies have others
    return {int(folder.name.removeprefix(_PREFIX)): folder for folder in ours}


def latest(parent: Path) -> Checkpoint | None:
    """The newest checkpoint that can be resumed. Raises CheckpointError for one that is damaged."""
    folders = [folder for folder in _steps(parent).values() if (folder / MOMENTS).is_file()]
    return read(folders[-1]) if folders else None


def read(folder: Path) -> Checkpoint:
    try:
        state = json.loads((folder / STATE).read_text())
        if state["format"] != FORMAT:
            raise CheckpointError(f"{folder}: format {state['format']}, this version reads {FORMAT}")
        if missing := {"step", "done", "config"} - state.keys():
            raise ValueError(f"{STATE} lacks {min(missing)}")
        return Checkpoint(folder, state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}: not a checkpoint of nanoemox train, or damaged ({error}); delete the folder to go on from "
            "the one before"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as f:
            return {name: f.get_tensor(name).clone() for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a safetensors file, or cut off ({error}); delete its folder to go on from the one before"
        ) from error


def prune(parent: Path, *, keep: int, epoch: int | None) -> None:
    """Leave the newest `keep`; of older ones the weights alone at every `epoch` steps, nothing where it is None."""
    folders = _steps(parent)
    for step, folder in list(folders.items())[:-keep]:
        if epoch is not None and step % epoch == 0:
            (folder / MOMENTS).unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what a killed writer left half-written."""
    if parent.is_dir():
        for folder in parent.glob(f".{_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, as "key was 1, is 2"."""
    out = []
    for key in [*saved, *(key for key in now if key not in saved)]:
        a, b = saved.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return out


def check_config(found: Checkpoint, now: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the checkpoint is of another configuration, naming the first differences."""
    if changed := differences(found.state["config"], now):
        shown = "; ".join(text if len(text) < 160 else text[:157] + "..." for text in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise CheckpointError(
            f"{found.folder}: of another configuration: {shown}{more}; resume with the one it was made with, or choose "
            "another --out"
        )
