"""Settings as reviewed data: configs/<GPU>.json, otherwise configs/default.json. Nothing is timed here.

An entry is the launch settings of a Triton kernel, or numbers that the model's code reads through `settings`.
"""

import json
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent / "configs"


def path(gpu: str) -> Path:
    """File with the settings of a GPU."""
    return _FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"


@cache
def load(gpu: str) -> dict[str, dict[str, Any]]:
    """All settings of a GPU; "" for the default. benchmarks/gpu/tune.py changes the returned dictionary."""
    entries: dict[str, dict[str, Any]] = {}
    for file in (_FOLDER / "default.json", path(gpu)):
        if file.is_file():
            entries |= json.loads(file.read_text())
    return entries


@cache
def _of(device: int) -> dict[str, dict[str, Any]]:
    return load(torch.cuda.get_device_name(device))


# Cached: repeated at every launch, these calls would take longer than all other Python code of the launch.
_count = cache(lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0)
_HERE = nullcontext()


def tuned(kernel: str) -> dict[str, int]:
    """Settings of a kernel on the current GPU."""
    count = _count()
    if count == 1:
        return _of(0)[kernel]
    return (_of(torch.cuda.current_device()) if count else load(""))[kernel]


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Context in which launches go to the tensor's GPU; does nothing on machines with one GPU at most."""
    return _HERE if _count() < 2 else torch.cuda.device_of(tensor)


def rows_at_once(numbers: int, width: int) -> int:
    """Rows of `width` numbers, a power of two, in a program of `numbers`; at least 1."""
    return max(numbers // width, 1)


def settings(name: str, device: torch.device) -> dict[str, Any]:
    """An entry of the settings of `device`, independent of the current GPU.

    Args:
        name: an entry of configs/default.json.
        device: a GPU; other devices have the default settings.

    Raises:
        KeyError: no entry has this name.
    """
    if device.type != "cuda":
        return load("")[name]
    return _of(torch.cuda.current_device() if device.index is None else device.index)[name]


def is_tuned(device: torch.device) -> bool:
    """Whether `device` is a GPU with its own settings; other devices use the default."""
    return device.type == "cuda" and path(torch.cuda.get_device_name(device)).is_file()
