"""Windowed-sinc resampling of a part of a signal, from that part alone (docs/architecture.md section 13)."""

import math

import numpy as np

_WIDTH, _ROLLOFF = 6, 0.99  # zero crossings and cut-off of torchaudio's default, which the official code uses


class Resampler:
    """Resamples from `rate` to `new_rate` Hz. Taps are built in float32, like the official ones."""

    def __init__(self, rate: int, new_rate: int):
        common = math.gcd(rate, new_rate)
        self.old, self.new = rate // common, new_rate // common
        cutoff = min(self.old, self.new) * _ROLLOFF
        self.reach = math.ceil(_WIDTH * self.old / cutoff)
        # Output phase j of a block of `new` is at j * old / new; taps further away than `reach` are zero.
        phase = np.arange(self.new)
        self.first = phase * self.old // self.new - self.reach
        index = self.first[:, None] + np.arange(2 * self.reach + 2)
        output_time = phase.astype(np.float32) / np.float32(self.new)
        input_time = index.astype(np.float32) / np.float32(self.old)
        t = -output_time[:, None] + input_time
        t = np.clip(t * np.float32(cutoff), -_WIDTH, _WIDTH)
        window = np.cos(t * np.float32(math.pi / _WIDTH / 2)) ** 2
        self.taps = np.sinc(t) * window * np.float32(cutoff / self.old)  # [new, 2 * reach + 2]

    def length(self, samples: int) -> int:
        """Number of output samples for a number of input samples."""
        return -(-self.new * samples // self.old)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Input [low, high) that output [start, stop) reads; beyond the ends of the signal it is zeros."""
        low = start // self.new * self.old + int(self.first[start % self.new])
        high = (stop - 1) // self.new * self.old + int(self.first[(stop - 1) % self.new]) + self.taps.shape[1]
        return low, high

    def run(self, samples: np.ndarray, offset: int, start: int, stop: int) -> np.ndarray:
        """Output [start, stop), float32. `samples` begins at input `offset` and covers needs(start, stop)."""
        out = np.empty(stop - start, np.float32)
        views = np.lib.stride_tricks.sliding_window_view(samples, self.taps.shape[1])
        for low in range(start, stop, 4096):  # bounds the gathered copy
            position = np.arange(low, min(low + 4096, stop))
            phase = position % self.new
            begin = position // self.new * self.old + self.first[phase] - offset
            out[low - start : low - start + len(position)] = np.einsum(
                "ik,ik->i", views[begin], self.taps[phase]
            )
        return out
