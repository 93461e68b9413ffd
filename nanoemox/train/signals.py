"""SIGINT and SIGTERM during training (docs/training.md section 7)."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None


class Stop:
    """Context in which SIGINT and SIGTERM request the end of the run after the current step.

    A second signal is handled as before the context.

    Attributes:
        signal: number of the signal that was received, 0 if none was.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Handler] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """A signal ended the run, whose checkpoint is written.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, folder: Path):
        super().__init__(f"interrupted; {folder} is written, --resume goes on from it")
        self.number = number
