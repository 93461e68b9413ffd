"""Launch settings as reviewed data: configs/<GPU>.json, else a default that is right everywhere. Nothing is timed."""

import json
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent / "configs"


def path(gpu: str) -> Path:
    """Where the settings of a GPU are kept."""
    return _FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"


@cache
def load(gpu: str) -> dict[str, dict[str, int]]:
    """Every kernel's settings on a GPU; "" for the default. benchmarks/gpu/tune.py changes the one that it is given."""
    found: dict[str, dict[str, int]] = {}
    for file in (_FOLDER / "default.json", path(gpu)):
        if file.is_file():
            found |= json.loads(file.read_text())
    return found


@cache
def _of(device: int) -> dict[str, dict[str, int]]:
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
