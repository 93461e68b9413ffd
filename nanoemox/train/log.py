"""The log of a stage: JSON lines, a progress bar on stderr, and TensorBoard where it is installed."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file, without an incomplete last one, which a killed process may leave."""
    if file.is_file():
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def write_json(file: Path, values: Any) -> None:
    """Write JSON by way of a temporary file, so that the file is complete at any time."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def cut(file: Path, step: int) -> None:
    """Remove the rows of `step` and later ones: a run that is resumed there writes them again."""
    if not file.is_file():
        return
    earlier = [row for row in rows(file) if row["step"] < step]
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in earlier))
    os.replace(temporary, file)


class Log:
    """Log of one process. All processes but the first write skipped samples only, to a file of their own.

    Args:
        folder: of the stage.
        stage, total: name and number of steps, for the progress bar.
        step: the first step to be logged; later rows of an earlier run are removed.
        rank: number of the process.
    """

    def __init__(self, folder: Path, stage: str, total: int, *, step: int, rank: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.is_first = rank == 0
        self.steps = folder / "log.jsonl"
        self.skipped = folder / ("skipped.jsonl" if self.is_first else f"skipped.{rank}.jsonl")
        for file in [self.skipped, *([self.steps] if self.is_first else [])]:
            cut(file, step)
        self._bar = _open_bar(stage, total, step) if self.is_first else None
        self._board = _open_board(folder, step) if self.is_first else None

    def step(self, row: dict[str, Any]) -> None:
        """Log a step: its number, loss, learning rate, ..."""
        if not self.is_first:
            return
        _append(self.steps, row)
        if self._bar is not None:
            self._bar.update(TaskID(0), completed=row["step"] + 1, loss=f"loss {row['loss']:.4f}")
        if self._board is not None:
            for name in ("loss", "lr"):
                self._board.add_scalar(name, row[name], row["step"])

    def skip(self, row: dict[str, Any]) -> None:
        """Log a sample that was replaced."""
        _append(self.skipped, row)

    def say(self, text: str) -> None:
        """Print a message to stderr."""
        if self.is_first:
            print(f"nanoemox: {text}", file=sys.stderr)

    def close(self) -> None:
        """End the progress bar and TensorBoard's file."""
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()


def _append(file: Path, row: dict[str, Any]) -> None:
    with open(file, "a") as stream:
        stream.write(json.dumps(row) + "\n")


def _open_bar(stage: str, total: int, step: int) -> Progress | None:
    """A progress bar, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return None
    bar = Progress(
        TextColumn("stage {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.start()
    bar.add_task(stage, total=total, completed=step, loss="")
    return bar


def _open_board(folder: Path, step: int) -> "SummaryWriter | None":
    """TensorBoard's writer, if it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
