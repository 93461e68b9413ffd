"""Samples of the next step, read by threads while the current step computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import MediaError
from .config import TrainConfig
from .examples import Batch, Example, Rejected, Samples, Unusable
from .sampler import Sampler


@dataclass
class MicroBatch:
    """A micro-batch that is being read: its source, and this process's part of its samples."""

    source: int
    examples: list["Future[Example]"]


class Prefetcher:
    """Draws the micro-batches of a step and reads the samples of this process.

    Args:
        sampler: draws global batches.
        samples: builds samples and batches.
        config: batch, accumulate and workers are used.
        rank: number of this process.

    Attributes:
        tried, bad: samples whose media was read, and those whose media could not be read.
    """

    def __init__(self, sampler: Sampler, samples: Samples, config: TrainConfig, rank: int):
        self.sampler, self.samples, self.config, self.rank = sampler, samples, config, rank
        self.tried = self.bad = 0
        self._pool = ThreadPoolExecutor(config.workers)

    def draw(self) -> list[MicroBatch]:
        """Draw the micro-batches of a step, and start reading them."""
        size = self.config.batch
        batches = []
        for _ in range(self.config.accumulate):
            draws = self.sampler.draw()
            own = draws[self.rank * size : (self.rank + 1) * size]
            examples = [self._pool.submit(self.samples.fetch, draw) for draw in own]
            batches.append(MicroBatch(draws[0].source, examples))
        return batches

    def collect(self, drawn: list[MicroBatch]) -> tuple[list[Batch], list[Rejected], MediaError | None]:
        """Wait for the samples of a step.

        Returns:
            The batches, the samples that were replaced, and an error instead of raising it, so that all
            processes can stop together.
        """
        batches: list[Batch] = []
        rejected: list[Rejected] = []
        error: MediaError | None = None
        try:
            for micro_batch in drawn:
                examples = []
                for future in micro_batch.examples:
                    example = future.result()
                    examples.append(example)
                    rejected += example.rejected
                    self.tried += 1
                batches.append(self.samples.batch(examples, micro_batch.source))
        except Unusable as unusable:
            rejected += unusable.rejected
            error = unusable
        unreadable = sum(not sample.long for sample in rejected)
        self.tried += unreadable
        self.bad += unreadable
        return batches, rejected, error

    def close(self) -> None:
        """Cancel what has not been read yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)
