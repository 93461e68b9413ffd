"""Which frames and which windows of sound are taken of a clip (docs/architecture.md section 13)."""

import math
from fractions import Fraction

from ..config import FRAMES, SAMPLE_RATE, WINDOW_SAMPLES, WINDOWS


def frame_indices(count: int) -> list[int]:
    """FRAMES indices into `count` frames: spread evenly; of fewer frames all, and the last one repeated."""
    used = min(FRAMES, count)
    indices = [i * count // used for i in range(used)]
    return indices + indices[-1:] * (FRAMES - used)


def window_starts(samples: int) -> list[int]:
    """First sample of each window of a 16 kHz signal; windows past its end are zero-padded.

    The span is a double and what follows is exact. Integers or doubles throughout would be off by one sample
    for a quarter of all lengths.
    """
    span = Fraction(max(samples / SAMPLE_RATE - WINDOW_SAMPLES / SAMPLE_RATE, 0.0))
    return [math.floor(span / WINDOWS * k * SAMPLE_RATE) for k in range(WINDOWS)]
