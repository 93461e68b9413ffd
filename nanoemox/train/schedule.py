"""Learning rate by step (docs/training.md section 2)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine from `init` to `minimum`.

    Attributes:
        epochs, steps_per_epoch: length of the run.
        init, minimum: rates at the start and at the end of the cosine.
        warmup_start, warmup_steps: rate of the first step, and length of the warm-up.
        legacy_epoch_offset: 1 counts epochs from 1, as the official loop does: the warm-up is skipped, and
            the cosine rises again in the last epoch.
    """

    epochs: int
    steps_per_epoch: int
    init: float
    minimum: float
    warmup_start: float
    warmup_steps: int = 5000
    legacy_epoch_offset: int = 0

    def rate(self, epoch: int, step: int) -> float:
        """Learning rate of a step within an epoch, both counted from 0."""
        epoch += self.legacy_epoch_offset
        t = epoch * self.steps_per_epoch + step
        total = self.epochs * self.steps_per_epoch
        if t < self.warmup_steps:
            return min(self.init, self.warmup_start + (self.init - self.warmup_start) * t / self.warmup_steps)
        if not self.legacy_epoch_offset and self.steps_per_epoch < self.warmup_steps:
            # The cosine spans the steps after the warm-up, so that the rate does not jump at its end.
            t, total = t - self.warmup_steps, max(total - self.warmup_steps, 1)
        return self.minimum + (self.init - self.minimum) * 0.5 * (1 + math.cos(math.pi * t / total))
