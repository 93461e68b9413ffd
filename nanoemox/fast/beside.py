"""Runs independent work side by side on a GPU: one clip's layers are too small to fill it one after another."""

from collections.abc import Callable, Sequence

import torch


class Beside:
    """Holds the side streams of each stream that asked, made when they are first needed."""

    def __init__(self) -> None:
        self._sides: dict[tuple[torch.device, int], list[torch.cuda.Stream]] = {}

    def __deepcopy__(self, memo: dict) -> "Beside":
        return Beside()

    def __reduce__(self) -> tuple:
        return Beside, ()

    def run(self, jobs: Sequence[Callable[[], None]], device: torch.device) -> None:
        """The first job on the current stream, which waits for the others; put the longest one there.

        What a job leaves behind may be used and freed like anything of the current stream: its memory goes back to a
        side stream, whose next work waits for the current one first.
        """
        here = torch.cuda.current_stream(device)
        sides = self._sides.setdefault((device, here.cuda_stream), [])
        while len(sides) < len(jobs) - 1:
            sides.append(torch.cuda.Stream(device))
        for side, job in zip(sides, jobs[1:], strict=False):
            side.wait_stream(here)
            with torch.cuda.stream(side):
                job()
        if jobs:
            jobs[0]()
        for side in sides[: len(jobs) - 1]:
            here.wait_stream(side)
