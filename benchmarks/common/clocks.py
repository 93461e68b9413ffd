"""Clocks for a GPU: the call as the caller waits for it, the device alone, memory and kernel launches."""

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def warm(call: Call, times: int = 3) -> None:
    for _ in range(times):
        call()
    torch.cuda.synchronize()


def wall(call: Call, rounds: int = 50) -> float:
    """Median seconds of a call with one synchronisation behind it."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def between_events(call: Call, rounds: int = 50, before: Call = lambda: None) -> list[float]:
    """Seconds of each call between two events on the device; `before` runs outside of them.

    One synchronisation.
    """
    pairs = []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before()
        first.record()
        call()
        last.record()
        pairs.append((first, last))
    torch.cuda.synchronize()
    return [first.elapsed_time(last) / 1e3 for first, last in pairs]


def capture(call: Call, repeats: int = 1) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a call that has been warmed, or of several in a row.

    What it returns is kept by nobody.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph


class Device:
    """Times calls that have been warmed inside CUDA graphs, so that gaps between launches do not count."""

    def __init__(self) -> None:
        self.flushed = torch.empty(1 << 26, device="cuda")  # 256 MiB: more than any L2

    def cold(self, call: Call, rounds: int = 50) -> float:
        """Median seconds of a graph of one call; before each replay L2 is overwritten."""
        graph = capture(call)
        return statistics.median(between_events(graph.replay, rounds, before=self.flushed.zero_))

    def hot(self, call: Call, rounds: int = 50, repeats: int = 10) -> float:
        """Median seconds of a call in a graph of ten, with what L2 holds by then."""
        graph = capture(call, repeats)
        return statistics.median(between_events(graph.replay, rounds)) / repeats


def peak_memory(call: Call) -> int:
    """Bytes that a call holds at most beyond what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kernels(call: Call) -> dict[str, int]:
    """Kernels and copies that one call runs on the device, as PyTorch's profiler sees them."""
    from torch.autograd import DeviceType

    warm(call, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    names = [
        event.name
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies}


def ceilings() -> dict[str, float]:
    """What this GPU does, the best of twenty: bytes a second of a copy, both ways counted; bf16 FLOP a
    second.
    """
    source = torch.randn(1 << 28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    warm(lambda: target.copy_(source))
    copied = min(between_events(lambda: target.copy_(source), 20))
    warm(lambda: a @ b)
    multiplied = min(between_events(lambda: a @ b, 20))
    return {"bandwidth": 2 * source.nbytes / copied, "matmul": 2 * 8192**3 / multiplied}
