"""How fast this machine reads memory: the ceiling of decoding."""

import time

import torch

from . import _native

_BYTES = 256 << 20  # more than any cache holds


class ReadProbe:
    """Reads one buffer again and again, on the C++ library's threads or, without it, on PyTorch's."""

    def __init__(self, nbytes: int = _BYTES):
        self.buffer = torch.zeros(nbytes // 8, dtype=torch.int64)

    def once(self) -> float:
        """Bytes a second of one pass."""
        start = time.perf_counter()
        if _native.library is None:
            self.buffer.sum()
        else:
            _native.library.nx_cpu_read(self.buffer.data_ptr(), self.buffer.nbytes)
        return self.buffer.nbytes / (time.perf_counter() - start)


def read_bandwidth(seconds: float = 0.2) -> float:
    """Bytes a second, the best of the passes that fit."""
    probe, end = ReadProbe(), time.perf_counter() + seconds
    best = probe.once()
    while time.perf_counter() < end:
        best = max(best, probe.once())
    return best
