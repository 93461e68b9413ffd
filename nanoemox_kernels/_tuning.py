"""Settings as reviewed data: configs/<GPU>.json, else a default that is right everywhere. Nothing is timed.

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
    """Where the settings of a GPU are kept."""
    return _FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"


@cache
def load(gpu: str) -> dict[str, dict[str, Any]]:
    """Every kernel's settings on a GPU; "" for the default. benchmarks/gpu/tune.py changes the one that it is given."""
    found: dict[str, dict[str, Any]] = {}
    for file in (_FOLDER / "default.json", path(gpu)):
        if file.is_file():
            found |= json.loads(file.read_text())
    return found


@cache
def _of(device: int) -> dict[str, dict[str, Any]]:
    return load(torch.cuda.get_device_name(device))


# Asked anew at every launch these would cost more than the rest of its Python.
_count = cache(lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0)
_HERE = nullcontext()


def tuned(kernel: str) -> dict[str, int]:
    """Settings of a kernel on the current GPU."""
    count = _count()
    if count == 1:
        return _of(0)[kernel]
    return (_of(torch.cuda.current_device()) if count else load(""))[kernel]


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Launches go to the tensor's GPU, not the current one; where there is one at most, nothing is to be done."""
    return _HERE if _count() < 2 else torch.cuda.device_of(tensor)


def rows_at_once(numbers: int, width: int) -> int:
    """Rows of `width`, a power of two, of a program that is to hold so many numbers; a power of two."""
    return max(numbers // width, 1)


def settings(name: str, device: torch.device) -> dict[str, Any]:
    """An entry of the configuration of `device`, whatever the current GPU is; the default for anything but a GPU.

    Raises KeyError for a name that no configuration has.
    """
    if device.type != "cuda":
        return load("")[name]
    return _of(torch.cuda.current_device() if device.index is None else device.index)[name]


def is_tuned(device: torch.device) -> bool:
    """Whether `device` is a GPU with a configuration of its own; others run with the default."""
    return device.type == "cuda" and path(torch.cuda.get_device_name(device)).is_file()
