"""What a stage writes while it runs: JSON lines, a progress bar on stderr, TensorBoard where it is installed."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file; a last one that a killed writer cut off is passed over."""
    if file.is_file():
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def write_json(file: Path, values: Any) -> None:
    """The whole file or the old one."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def cut(file: Path, step: int) -> None:
    """Leave the rows before `step`, those of a checkpoint's own past."""
    if file.is_file():
        kept = [row for row in rows(file) if row["step"] < step]
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, file)


class Log:
    """`quiet` (every process but the first): rows about skipped samples only, in a file of their own."""

    def __init__(self, folder: Path, stage: str, total: int, *, step: int, rank: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.first = rank == 0
        self.steps = folder / "log.jsonl"
        self.skipped = folder / ("skipped.jsonl" if self.first else f"skipped.{rank}.jsonl")
        for file in [self.skipped, *([self.steps] if self.first else [])]:
            cut(file, step)
        self._bar: Any = None
        self._board: Any = None
        if self.first:
            self._bar = _bar(stage, total, step)
            self._board = _board(folder, step)

    def step(self, row: dict[str, Any]) -> None:
        if not self.first:
            return
        _append(self.steps, row)
        if self._bar is not None:
            self._bar.update(0, completed=row["step"] + 1, loss=f"loss {row['loss']:.4f}")
        if self._board is not None:
            for name in ("loss", "lr"):
                self._board.add_scalar(name, row[name], row["step"])

    def skip(self, row: dict[str, Any]) -> None:
        _append(self.skipped, row)

    def say(self, text: str) -> None:
        if self.first:
            print(f"nanoemox: {text}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()


def _append(file: Path, row: dict[str, Any]) -> None:
    with open(file, "a") as f:
        f.write(json.dumps(row) + "\n")


def _bar(stage: str, total: int, step: int) -> Any:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("stage {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    bar.start()
    bar.add_task(stage, total=total, completed=step, loss="")
    return bar


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
