"""The bandwidth of reading memory on this machine: the upper limit of decoding speed."""

import time

import torch

from . import _native

_BYTES = 256 << 20  # larger than any cache


class ReadProbe:
    """Reads one buffer repeatedly, on the threads of the C++ library or, without it, of PyTorch."""

    def __init__(self, nbytes: int = _BYTES):
        """nbytes: size of the buffer."""
        self.buffer = torch.zeros(nbytes // 8, dtype=torch.int64)

    def once(self) -> float:
        """Read the buffer once. Returns bytes per second."""
        start = time.perf_counter()
        if _native.library is None:
            self.buffer.sum()
        else:
            _native.read(self.buffer)
        return self.buffer.nbytes / (time.perf_counter() - start)


def read_bandwidth(seconds: float = 0.2) -> float:
    """Bytes per second of the best of as many passes as fit into `seconds`."""
    probe = ReadProbe()
    end = time.perf_counter() + seconds
    best = probe.once()
    while time.perf_counter() < end:
        best = max(best, probe.once())
    return best
