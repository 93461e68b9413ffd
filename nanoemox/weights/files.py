"""Files of tensors as others publish them, read without running any code in them."""

import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..bundle.tensors import index
from ..errors import CheckpointError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Loader = Callable[[], Tensor]


class Stored(NamedTuple):
    """A tensor in a file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Loader


class Found(NamedTuple):
    """The same before it is checked. `read` is None unless the tensor is dense and of a float dtype."""

    shape: tuple[int, ...]
    read: Loader | None


Tensors = dict[str, Stored]  # official name -> tensor


def read_folder(path: Path) -> dict[str, Found]:
    """Tensors of a Hugging Face folder: of its safetensors if there are any, else of its `.bin` files."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a folder; a Hugging Face model folder is needed here")
    files = sorted(path.glob("*.safetensors"))
    if files:
        entries = index(files).items()
        return {name: Found(entry.shape, partial(_read_one, entry.file, name)) for name, entry in entries}
    tensors: dict[str, Found] = {}
    for file in sorted(path.glob("pytorch_model*.bin")):
        tensors |= read_pickle(file, None)
    if not tensors:
        raise CheckpointError(f"{path}: no *.safetensors and no pytorch_model*.bin in it")
    return tensors


def read_pickle(path: Path, key: str | None) -> dict[str, Found]:
    """Tensors of a torch file, or of the table that it has under `key`."""
    table = _unpickle(path)
    if key is not None:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        under = f" under {key!r}" if key else ""
        raise CheckpointError(f"{path}: no table of tensors{under} in it; is this the right file?")
    tensors: dict[str, Found] = {}
    for name, value in table.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor")
        is_dense = value.layout is torch.strided and not value.is_meta
        is_float = value.dtype in _FLOATS
        tensors[name] = Found(tuple(value.shape), partial(_same, value) if is_dense and is_float else None)
    return tensors


def _unpickle(path: Path) -> Any:
    """The content of a torch file, mapped if possible."""
    try:
        return _torch_load(path, mmap=True)
    except (OSError, pickle.UnpicklingError) as error:
        raise _refusal(path, error) from error
    except Exception:  # a file of an old torch cannot be mapped
        pass
    try:
        return _torch_load(path, mmap=False)
    except Exception as error:  # a damaged pickle raises exceptions of any class
        raise _refusal(path, error) from error


def _torch_load(path: Path, mmap: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _refusal(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, OSError):
        return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(f"{path}: not opened, since it holds more than tensors and could run code")
    return CheckpointError(f"{path}: not a torch file, or damaged ({type(error).__name__})")


def _same(value: Tensor) -> Tensor:
    return value


def _read_one(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as reader:
        return reader.get_tensor(name)
