"""Launch settings as reviewed data: configs/<GPU>.json, else a default that is right everywhere. Nothing is timed."""

import json
import re
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent / "configs"


@cache
def _settings(gpu: str) -> dict[str, dict[str, int]]:
    files = [_FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json", _FOLDER / "default.json"]
    found: dict[str, dict[str, int]] = {}
    for file in reversed(files):
        if file.is_file():
            found |= json.loads(file.read_text())
    return found


def tuned(kernel: str) -> dict[str, int]:
    """Settings of a kernel on the current GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return dict(_settings(gpu)[kernel])
