"""Results files: rows, and the machine and versions they come from. `document.py` makes pages of them."""

import argparse
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
    """Where results come from.

    Args:
        commit: for a tree that is a copy without its repository; None asks git.

    Returns:
        "machine", "python", "torch", "triton", "transformers" and "commit" ("" if unknown); with a GPU also
        "driver", "cuda" and "date".
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
    """What a program prints; "" if it is not installed or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    done = subprocess.run([path, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""


def gpu_results_path(gpu: str) -> Path:
    """File of today's whole run on a GPU of this name."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu)
    return FOLDER / f"{name}-{date.today().isoformat()}.json"


def argument_parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser with the option --results, which names the file that `write` writes.

    Args:
        docstring: of the script; printed by --help.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=docstring, formatter_class=formatter)
    parser.add_argument("--results", help="write the rows to this JSON file")
    return parser


def write(path: str | Path, rows: list[Row], origin: Row | None = None, **details: object) -> None:
    """Write a results file and the folders above it.

    Args:
        path: the JSON file.
        rows: one per result; `document.py` says which fields it reads.
        origin: what `machine` returns; None asks it.
        details: further fields of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"from": machine() if origin is None else origin, **details, "rows": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")
