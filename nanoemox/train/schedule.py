"""Learning rate by step (tasks.md section 6.2; architecture section 17)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine from `init` to `minimum`.

    `legacy_epoch_offset` = 1 counts epochs from 1, as the official loop does: no warm-up is entered and the cosine
    rises again in the last epoch. Where an epoch is shorter than the warm-up, the cosine spans the steps after it,
    so that the rate does not jump at its end; at the official size it spans the whole run.
    """

    epochs: int
    steps_per_epoch: int
    init: float
    minimum: float
    warmup_start: float
    warmup_steps: int = 5000
    legacy_epoch_offset: int = 0

    def rate(self, epoch: int, step: int) -> float:
        """Learning rate of a step of an epoch, both counted from 0."""
        epoch += self.legacy_epoch_offset
        t = epoch * self.steps_per_epoch + step
        total = self.epochs * self.steps_per_epoch
        if t < self.warmup_steps:
            return min(self.init, self.warmup_start + (self.init - self.warmup_start) * t / self.warmup_steps)
        if not self.legacy_epoch_offset and self.steps_per_epoch < self.warmup_steps:
            t, total = t - self.warmup_steps, max(total - self.warmup_steps, 1)
        return self.minimum + (self.init - self.minimum) * 0.5 * (1 + math.cos(math.pi * t / total))
