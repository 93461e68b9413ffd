"""Results as files: rows with the machine and the versions that they come from.

`document.py` makes pages of them.
"""

import json
import platform
import re
import shutil
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results"
Row = dict[str, Any]


def machine(commit: str | None = None) -> Row:
    """What a figure comes from: machine, Python, versions and commit; on a GPU its driver, CUDA and the date
    too.

    commit: given where the tree is a copy without its repository; default what git says, or "".
    """
    source: Row = {"machine": _machine_name(), "python": platform.python_version()}
    source |= {package: _version(package) for package in ("torch", "triton", "transformers")}
    source["commit"] = commit or _output("git", "rev-parse", "--short", "HEAD")
    if torch.cuda.is_available():
        drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        source |= {"driver": drivers.split("\n")[0], "cuda": torch.version.cuda}
        source["date"] = date.today().isoformat()
    return source


def _machine_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(program: str, *arguments: str) -> str:
    """What a program prints, "" where it is not installed or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    done = subprocess.run([path, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""


def gpu_results_path(gpu: str) -> Path:
    """Where a whole run on a GPU is kept."""
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}-{date.today().isoformat()}.json"


def write(path: str | Path, rows: list[Row]) -> None:
    """Write rows and what machine they come from."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"from": machine(), "rows": rows}, indent=1) + "\n")
