"""Replays CUDA graphs, so that a GPU does not wait for Python between kernels, and captures work side by side."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nanoemox_kernels.linear.cublas_lt import multiprocessors

_MOST = 8  # graphs that a part keeps, each with the memory of its temporaries
_TURNS = threading.RLock()  # graphs are captured and replayed one at a time, each has its inputs' memory once
_last: dict[int, torch.cuda.Event] = {}  # of a device: behind the last replay
_nested = (
    threading.local()
)  # .here: this thread runs what is, or may be, part of a larger graph; .beside: of a branch


class Replayed(nn.Module):
    """A part with a method that is marked with `replayed`. Moving it drops its graphs."""

    replays = True  # False: always the plain method

    def rests_on(self) -> Sequence[Tensor] | None:
        """Tensors whose place tells whether graphs still hold, where a move does not; None: there are to be none."""
        return () if self.replays else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Replayed":
        self.__dict__.pop("_graphs", None)
        return super()._apply(fn, recurse)


def replayed(method: Callable[..., Any]) -> Callable[..., Any]:
    """The first call with inputs of some shapes and dtypes is plain, the second is captured, later ones replay it.

    Inputs are tensors or None. Plain as well: outside of inference mode, on another device than the current GPU, and
    within another's capture or replayed method.
    """

    @wraps(method)
    def call(self: Replayed, *inputs: Tensor | None) -> Any:
        if not _may(inputs) or (tensors := self.rests_on()) is None:
            return method(self, *inputs)
        return self.__dict__.setdefault("_graphs", _Graphs())(partial(method, self), inputs, tensors)

    return call


def _may(inputs: Sequence[Tensor | None]) -> bool:
    given = [x for x in inputs if x is not None]
    if any(x.device.type != "cuda" or x.numel() == 0 for x in given) or not torch.is_inference_mode_enabled():
        return False
    if not given or torch.compiler.is_compiling() or getattr(_nested, "here", False):
        return False
    here = torch.cuda.current_device()
    return all(x.device.index == here for x in given) and not torch.cuda.is_current_stream_capturing()


class _Graphs:
    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, _Captured | None] = OrderedDict()
        self._places: list[int] = []
        self._rests_on: list[Tensor] = []  # held: what lies where it was is the same then

    def __deepcopy__(self, memo: dict) -> "_Graphs":
        return _Graphs()  # a graph belongs to the tensors that it was captured with

    def __reduce__(self) -> tuple:
        return _Graphs, ()

    def __call__(
        self, function: Callable[..., Any], inputs: Sequence[Tensor | None], tensors: Sequence[Tensor]
    ) -> Any:
        with _TURNS:
            if (places := [t.data_ptr() for t in tensors]) != self._places:
                self._kept.clear()
                self._places, self._rests_on = places, [t.detach() for t in tensors]
            key = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
            known, held = key in self._kept, self._kept.get(key)
            if known and held is None:
                held = _capture(function, inputs)
            self._kept[key] = held
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            if held is not None:
                return held.replay(inputs)
        return _plainly(function, inputs)


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    given: list[Tensor]  # those that are not None
    out: Any
    device: int

    def replay(self, inputs: Sequence[Tensor | None]) -> Any:
        # Up to the launch the GPU waits for each call: a query is quicker than a wait for nothing, and so on.
        last = _last.get(self.device)
        if last is not None and not last.query():
            torch.cuda.current_stream().wait_event(last)
        torch._foreach_copy_(self.given, [x for x in inputs if x is not None])
        self.graph.replay()
        copies, here = _copied(self.out), torch.cuda.current_stream()
        for kept in self.given:
            kept.record_stream(here)  # should the graph be dropped meanwhile
        _last.setdefault(self.device, torch.cuda.Event()).record(here)
        return copies


def _copied(out: Any) -> Any:
    """The same with new tensors, those of a dtype by one launch."""
    kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}

    def like(old: Tensor) -> Tensor:
        new, olds = kinds.setdefault(old.dtype, ([], []))
        new.append(torch.empty_like(old))
        olds.append(old)
        return new[-1]

    copies = _mapped(like, out)
    for new, olds in kinds.values():
        torch._foreach_copy_(new, olds)
    return copies


def _mapped(function: Callable[[Tensor], Tensor], out: Any) -> Any:
    """The same with `function` of every tensor in it."""
    if isinstance(out, Tensor):
        return function(out)
    if isinstance(out, tuple):
        return tuple(_mapped(function, part) for part in out)
    if isinstance(out, dict):
        return {name: _mapped(function, part) for name, part in out.items()}
    if is_dataclass(out) and not isinstance(out, type):
        return replace(
            out, **{field.name: _mapped(function, getattr(out, field.name)) for field in fields(out)}
        )
    return out


def _plainly(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> Any:
    _nested.here = True
    try:
        return function(*inputs)
    finally:
        _nested.here = False


def _capture(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> _Captured:
    given, graph = [None if x is None else x.contiguous().clone() for x in inputs], torch.cuda.CUDAGraph()
    here = torch.cuda.current_stream()
    stream = _side(here.device_index, 0, 0)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        _plainly(function, given)
    here.wait_stream(stream)
    # PyTorch keeps cuBLAS's workspaces by stream: graphs of one stream would share theirs, and lose it with the end of
    # any of them (https://github.com/pytorch/pytorch/issues/193402). Forgotten before and after, they are this graph's.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = _plainly(function, given)
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return _Captured(graph, [x for x in given if x is not None], out, here.device_index)


@cache
def _side(device: int, stream: int, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Run independent jobs; within a capture they become branches of the graph, for one clip's layers fill no GPU.

    The first stays on the current stream, which waits for the others; jobs but the first may have jobs side by side of
    their own. What a job leaves behind may be used and freed like anything of the current stream: a side stream's next
    job waits for that one before it takes the memory again.
    """
    before = getattr(_nested, "beside", False)
    captures = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    _nested.beside = before or (len(jobs) > 1 and (captures or getattr(_nested, "here", False)))
    try:
        if len(jobs) > 1 and captures:
            return _branch(jobs)
        for job in jobs:
            job()
    finally:
        _nested.beside = before


def _branch(jobs: Sequence[Callable[[], None]]) -> None:
    here = torch.cuda.current_stream()
    branches = [here, *(_side(here.device_index, here.cuda_stream, number) for number in range(1, len(jobs)))]
    for side in branches[1:]:
        side.wait_stream(here)
    for branch, job in zip(branches, jobs, strict=True):
        with torch.cuda.stream(branch):
            job()
    for side in branches[1:]:
        here.wait_stream(side)


@contextmanager
def share(part: float) -> Iterator[None]:
    """Products within take that part of the multiprocessors where they are, or lead to, one of a graph's branches."""
    beside = torch.cuda.is_available() and getattr(_nested, "beside", False)
    count = (
        torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count if beside else 0
    )
    with multiprocessors(int(part * count)):
        yield
