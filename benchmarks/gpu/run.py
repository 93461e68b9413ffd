"""What the steps of gpu_check share: the results file, the deadline, the tools beside Python, the models
under test.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
Row = dict[str, Any]


def tool(name: str) -> str | None:
    """Path of a CUDA tool, or None."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")


def command(arguments: list[str], seconds: float, **env: str) -> tuple[int, str]:
    """(exit status, output) of a command in the project's root; 124 if it took longer."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, **env}
    try:
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=max(seconds, 1),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return 124, output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def itself(*arguments: str) -> list[str]:
    """The command that runs gpu_check in a process of its own."""
    return [sys.executable, str(SCRIPT), *arguments]


class Run:
    """Rows so far, written to the file after each, so that a run that is stopped leaves what it found."""

    def __init__(self, path: Path, origin: Row, minutes: float, folder: Path):
        """folder: for bundles."""
        self.path, self.origin, self.folder = path, origin, folder
        self.deadline = time.monotonic() + 60 * minutes
        self.rows: list[Row] = []
        self.ceilings: dict[str, float] = {}

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    @property
    def correct(self) -> bool:
        """No check has failed."""
        return all(row.get("ok") is not False for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        everything = {
            "from": self.origin,
            "correct": self.correct,
            "ceilings": self.ceilings,
            "rows": self.rows,
        }
        self.path.write_text(json.dumps(everything, indent=1) + "\n")
        state = {True: "ok", False: "FAILED", None: "left out" if "left_out" in row else "done"}[
            row.get("ok")
        ]
        print(f"[{self.left():4.0f} s left] {row['step']}: {row['name']}: {state}", flush=True)

    @cached_property
    def bundle(self) -> Path:
        """nano-emox-2.2b with random weights; one layer of its language model, which encode does not run."""
        from nanoemox.config import LanguageConfig, NanoEmoXConfig
        from nanoemox.weights import random_bundle

        language = LanguageConfig(vocab_size=1024, layers=1, mlp_size=1536)
        return random_bundle(
            replace(NanoEmoXConfig(), language=language, lora=None), self.folder / "true-size"
        )

    @cached_property
    def slow(self) -> Any:
        """The reference at true size in bf16."""
        return self.load(self.bundle, fast=False)

    @cached_property
    def fast(self) -> Any:
        return self.load(self.bundle, fast=True)

    def load(self, source: str | Path, *, fast: bool, dtype: str = "bfloat16") -> Any:
        import nanoemox
        from nanoemox.fast.model import FastNanoEmoX

        model = nanoemox.load(source, fast=fast, device="cuda", dtype=dtype)
        if isinstance(model, FastNanoEmoX) != fast:
            raise RuntimeError(f"load(fast={fast}) gave {type(model).__name__}")
        return model


Step = Callable[[Run], Iterable[Row]]


def guarded(step: Step, run: Run) -> Iterator[Row]:
    """The rows of a step; its failure is a row too, and what comes after it runs."""
    try:
        yield from step(run)
    except Exception as error:
        said = traceback.format_exc()[-4000:]
        yield {"step": step.__name__, "name": type(error).__name__, "ok": False, "output": said}
