"""Launch settings as reviewed data: configs/<GPU>.json, else a default that is right everywhere. Nothing is timed."""

import json
import re
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent / "configs"


def path(gpu: str) -> Path:
    """Where the settings of a GPU are kept."""
    return _FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"


@cache
def load(gpu: str) -> dict[str, dict[str, int]]:
    """Every kernel's settings on a GPU; "" for the default. benchmarks/tune.py changes the one that it is given."""
    found: dict[str, dict[str, int]] = {}
    for file in (_FOLDER / "default.json", path(gpu)):
        if file.is_file():
            found |= json.loads(file.read_text())
    return found


@cache
def _of(device: int) -> dict[str, dict[str, int]]:
    return load(torch.cuda.get_device_name(device))


_available = cache(torch.cuda.is_available)  # asked anew it would cost more than the rest of a launch's Python


def tuned(kernel: str) -> dict[str, int]:
    """Settings of a kernel on the current GPU."""
    return (_of(torch.cuda.current_device()) if _available() else load(""))[kernel]
