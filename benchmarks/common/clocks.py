"""Clocks: wall time of a call; device time, memory, kernel launches and ceilings of a GPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], object]

_FLUSH = 1 << 26  # fp32 numbers, 256 MiB: more than any L2


def seconds(call: Call) -> float:
    """Wall time of one call, without a synchronization."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def synchronized_seconds(call: Call) -> float:
    """Wall time of one call and of a GPU synchronization after it."""
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def warm(call: Call, times: int = 3) -> None:
    """Call `times` times and synchronize the GPU."""
    for _ in range(times):
        call()
    torch.cuda.synchronize()


def wall(call: Call, rounds: int = 50) -> float:
    """Median seconds of a call and the GPU synchronization after it."""
    return statistics.median(synchronized_seconds(call) for _ in range(rounds))


def between_events(call: Call, rounds: int = 50, before: Call = lambda: None) -> list[float]:
    """Device time of each call.

    Args:
        call: the call, which runs between two events on the current stream.
        rounds: number of calls.
        before: runs before each call and is not timed.

    Returns:
        Seconds of each call. The GPU is synchronized once, after the last.
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
    """A CUDA graph of `repeats` calls in a row, which must be warm. The results of the calls are dropped."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph


class TurnClock:
    """Times single calls, so that several implementations can take turns.

    Args:
        device: "cuda", which also measures device time, or "cpu".
    """

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"
        self._flushed = torch.empty(_FLUSH if self.on_gpu else 0, device=device)

    def once(self, call: Call, flush: bool = True) -> tuple[float, float | None]:
        """Time one call.

        Args:
            call: the call, which must be warm.
            flush: whether L2 is overwritten before.

        Returns:
            Seconds of wall time and of device time (None on a CPU).
        """
        if flush:
            self._flushed.zero_()
        if not self.on_gpu:
            return seconds(call), None
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        start = time.perf_counter()
        call()
        last.record()
        torch.cuda.synchronize()
        taken = time.perf_counter() - start
        return taken, first.elapsed_time(last) / 1e3


class GraphClock:
    """Device time of calls inside CUDA graphs, so that gaps between launches do not count."""

    def __init__(self) -> None:
        self._flushed = torch.empty(_FLUSH, device="cuda")

    def cold(self, call: Call, rounds: int = 50) -> float:
        """Median seconds of a graph of one call; L2 is overwritten before each replay."""
        graph = capture(call)
        return statistics.median(between_events(graph.replay, rounds, before=self._flushed.zero_))

    def hot(self, call: Call, rounds: int = 50, repeats: int = 10) -> float:
        """Median seconds of a call in a graph of ten calls; L2 keeps what the call before left in it."""
        graph = capture(call, repeats)
        return statistics.median(between_events(graph.replay, rounds)) / repeats


def peak_memory(call: Call) -> int:
    """Largest number of bytes that a call allocates on top of what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def device_events(call: Call, calls: int = 1) -> list[Any]:
    """Kernels and copies of `calls` calls, as events of PyTorch's profiler; the call must be warm."""
    from torch.autograd import DeviceType

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    return [
        event
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


def kernels(call: Call) -> dict[str, int]:
    """Numbers of kernels and of copies that one call runs on the device."""
    warm(call, 1)
    names = [event.name for event in device_events(call)]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies}


def ceilings() -> dict[str, float]:
    """What this GPU reaches, the best of twenty.

    Returns:
        "bandwidth": bytes per second of a copy, reads and writes counted; "matmul": FLOP per second of a bf16
        matrix product.
    """
    source = torch.randn(1 << 28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    warm(lambda: target.copy_(source))
    copied = min(between_events(lambda: target.copy_(source), 20))
    warm(lambda: a @ b)
    multiplied = min(between_events(lambda: a @ b, 20))
    return {"bandwidth": 2 * source.nbytes / copied, "matmul": 2 * 8192**3 / multiplied}
