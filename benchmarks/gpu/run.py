"""What the steps of gpu_check share: results file, deadline, command-line tools and the models under test."""

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

from common.results import Row, write

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def tool(name: str) -> str | None:
    """Path of a CUDA tool, or None."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")


def command(arguments: list[str], seconds: float, **env: str) -> tuple[int, str]:
    """Run a command in the root of the repository.

    Args:
        arguments: program and arguments.
        seconds: limit, at least one second.
        env: environment variables to add.

    Returns:
        Exit status (124 if the command exceeded the limit) and output.
    """
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
    """The command that runs gpu_check with these arguments in another process."""
    return [sys.executable, str(SCRIPT), *arguments]


class Run:
    """The rows of a run. The file is written after each row, so that an interrupted run keeps its results.

    Args:
        path: the results file.
        origin: what `common.results.machine` returns.
        minutes: time that the run may take.
        folder: where bundles are made; the caller removes it.

    Attributes:
        rows: the results so far.
        ceilings: what `common.clocks.ceilings` returns, empty before it ran.
    """

    def __init__(self, path: Path, origin: Row, minutes: float, folder: Path):
        self.path, self.origin, self.folder = path, origin, folder
        self.deadline = time.monotonic() + 60 * minutes
        self.rows: list[Row] = []
        self.ceilings: dict[str, float] = {}

    def left(self) -> float:
        """Seconds before the deadline."""
        return self.deadline - time.monotonic()

    @property
    def correct(self) -> bool:
        """No check has failed."""
        return all(row.get("ok") is not False for row in self.rows)

    def add(self, row: Row) -> None:
        """Append a row, write the file and print one line."""
        self.rows.append(row)
        write(self.path, self.rows, self.origin, correct=self.correct, ceilings=self.ceilings)
        if "ok" in row:
            state = "ok" if row["ok"] else "FAILED"
        else:
            state = "left out" if "left_out" in row else "done"
        print(f"[{self.left():4.0f} s left] {row['step']}: {row['name']}: {state}", flush=True)

    @cached_property
    def bundle(self) -> Path:
        """nano-emox-2.2b with random weights and a small language model, which `encode` does not run."""
        from nanoemox.config import LanguageConfig, NanoEmoXConfig
        from nanoemox.weights import random_bundle

        language = LanguageConfig(vocab_size=1024, layers=1, mlp_size=1536)
        return random_bundle(
            replace(NanoEmoXConfig(), language=language, lora=None), self.folder / "true-size"
        )

    @cached_property
    def slow(self) -> Any:
        """The reference at published size in bf16."""
        return self.load(self.bundle, fast=False)

    @cached_property
    def fast(self) -> Any:
        """The accelerated form of the same bundle."""
        return self.load(self.bundle, fast=True)

    def load(self, source: str | Path, *, fast: bool, dtype: str = "bfloat16") -> Any:
        """Load a model on the GPU and check that it has the form that was asked for."""
        import nanoemox
        from nanoemox.fast.model import FastNanoEmoX

        model = nanoemox.load(source, fast=fast, device="cuda", dtype=dtype)
        if isinstance(model, FastNanoEmoX) != fast:
            raise RuntimeError(f"load(fast={fast}) gave {type(model).__name__}")
        return model


Step = Callable[[Run], Iterable[Row]]


def guarded(step: Step, run: Run) -> Iterator[Row]:
    """The rows of a step. An exception becomes a row that failed, so that the next step runs."""
    try:
        yield from step(run)
    except Exception as error:
        output = traceback.format_exc()[-4000:]
        yield {"step": step.__name__, "name": type(error).__name__, "ok": False, "output": output}
