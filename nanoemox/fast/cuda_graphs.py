"""CUDA graphs of a module's method: captured once a shape, then replayed, so that Python launches no kernels.

Within a capture, independent work can become branches of the graph, each limited to a share of the GPU.
"""

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

_MAX_GRAPHS = 8  # kept by a module; each holds the memory of its temporaries
_LOCK = threading.RLock()  # graphs are captured and replayed one at a time: each has one copy of its inputs
_last_replay: dict[int, torch.cuda.Event] = {}  # device -> recorded behind its last replay
_scope = (
    threading.local()
)  # .in_graph: this thread runs a method that is, or may be, captured; .in_branch: a branch


class Replayed(nn.Module):
    """A module with methods that are marked with `replayed`.

    Moving it to a device or dtype drops its graphs.
    """

    replays = True  # False: the methods always run without a graph

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._graphs = _Graphs()

    def graph_dependencies(self) -> Sequence[Tensor] | None:
        """Tensors whose addresses tell whether the graphs are still valid; None: use no graph."""
        return () if self.replays else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Replayed":
        self._graphs = _Graphs()
        return super()._apply(fn, recurse)


def replayed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method through CUDA graphs: the first call of a shape runs it, the second captures it, later ones
    replay.

    The method takes tensors or None. No graph is used outside of inference mode, for tensors on a GPU that is
    not the current one, within another capture, and within another replayed method."""

    @wraps(method)
    def call(self: Replayed, *inputs: Tensor | None) -> Any:
        if not _can_use_graphs(inputs):
            return method(self, *inputs)
        dependencies = self.graph_dependencies()
        if dependencies is None:
            return method(self, *inputs)
        return self._graphs(partial(method, self), inputs, dependencies)

    return call


def _can_use_graphs(inputs: Sequence[Tensor | None]) -> bool:
    tensors = [x for x in inputs if x is not None]
    if any(x.device.type != "cuda" or x.numel() == 0 for x in tensors):
        return False
    if not tensors or not torch.is_inference_mode_enabled():
        return False
    if torch.compiler.is_compiling() or getattr(_scope, "in_graph", False):
        return False
    current = torch.cuda.current_device()
    return all(x.device.index == current for x in tensors) and not torch.cuda.is_current_stream_capturing()


class _Graphs:
    """The graphs of a module by the shapes and dtypes of its inputs."""

    def __init__(self) -> None:
        # None: the shape was seen once, and is captured at its next call.
        self._by_shape: OrderedDict[tuple, _Captured | None] = OrderedDict()
        self._addresses: list[int] = []
        self._dependencies: list[Tensor] = []  # kept alive, so that an equal address means the same tensor

    def __deepcopy__(self, memo: dict) -> "_Graphs":
        return _Graphs()  # a graph belongs to the tensors that it was captured with

    def __reduce__(self) -> tuple:
        return _Graphs, ()

    def __call__(
        self, function: Callable[..., Any], inputs: Sequence[Tensor | None], dependencies: Sequence[Tensor]
    ) -> Any:
        with _LOCK:
            addresses = [tensor.data_ptr() for tensor in dependencies]
            if addresses != self._addresses:
                self._by_shape.clear()
                self._addresses = addresses
                self._dependencies = [tensor.detach() for tensor in dependencies]
            key = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
            captured = self._by_shape.get(key)
            if captured is None and key in self._by_shape:
                captured = _capture(function, inputs)
            self._by_shape[key] = captured
            self._by_shape.move_to_end(key)
            while len(self._by_shape) > _MAX_GRAPHS:
                self._by_shape.popitem(last=False)
            if captured is not None:
                return captured.replay(inputs)
        return _run_in_graph_scope(function, inputs)


class _Captured(NamedTuple):
    """A graph, its own copies of the inputs (those that are not None), what it writes, and its GPU."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any
    device: int

    def replay(self, inputs: Sequence[Tensor | None]) -> Any:
        # The GPU is idle until the launch: every call before it counts. A query is faster than a wait for
        # nothing.
        last = _last_replay.get(self.device)
        if last is not None and not last.query():
            torch.cuda.current_stream().wait_event(last)
        torch._foreach_copy_(self.inputs, [x for x in inputs if x is not None])
        self.graph.replay()
        outputs = _copied(self.outputs)
        stream = torch.cuda.current_stream()
        for tensor in self.inputs:
            tensor.record_stream(stream)  # the graph may be dropped while it runs
        _last_replay.setdefault(self.device, torch.cuda.Event()).record(stream)
        return outputs


def _copied(outputs: Any) -> Any:
    """The same structure with new tensors; one launch copies all tensors of a dtype."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}

    def new_like(source: Tensor) -> Tensor:
        targets, sources = by_dtype.setdefault(source.dtype, ([], []))
        targets.append(torch.empty_like(source))
        sources.append(source)
        return targets[-1]

    copies = _map_tensors(new_like, outputs)
    for targets, sources in by_dtype.values():
        torch._foreach_copy_(targets, sources)
    return copies


def _map_tensors(function: Callable[[Tensor], Tensor], structure: Any) -> Any:
    """Apply `function` to every tensor of nested tuples, dicts and dataclasses."""
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, tuple):
        return tuple(_map_tensors(function, part) for part in structure)
    if isinstance(structure, dict):
        return {name: _map_tensors(function, part) for name, part in structure.items()}
    if is_dataclass(structure) and not isinstance(structure, type):
        parts = {f.name: _map_tensors(function, getattr(structure, f.name)) for f in fields(structure)}
        return replace(structure, **parts)
    return structure


def _run_in_graph_scope(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> Any:
    _scope.in_graph = True
    try:
        return function(*inputs)
    finally:
        _scope.in_graph = False


def _capture(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> _Captured:
    copies = [None if x is None else x.contiguous().clone() for x in inputs]
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream()
    stream = _side_stream(current.device_index, 0, 0)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        _run_in_graph_scope(function, copies)
    current.wait_stream(stream)
    # PyTorch keeps cuBLAS's workspaces by stream: graphs of one stream would share them, and lose them with
    # the end of any of these graphs (https://github.com/pytorch/pytorch/issues/193402). Cleared before and
    # after the capture, they belong to this graph alone.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = _run_in_graph_scope(function, copies)
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return _Captured(graph, [x for x in copies if x is not None], outputs, current.device_index)


@cache
def _side_stream(device: int, stream: int, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def run_branches(*branches: Callable[[], Any] | None) -> tuple[Any, ...]:
    """Run independent functions and return their results; None gives None.

    Within a capture they become branches of the graph, because the layers of one clip do not fill a GPU. The
    first function stays on the current stream, which waits for the others at the end; functions but the first
    may have branches of their own. Their results may be used and freed like anything of the current stream:
    the next branch on a side stream waits for that stream before it takes the memory again."""
    functions = [branch for branch in branches if branch is not None]
    outer = getattr(_scope, "in_branch", False)
    capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    several = len(functions) > 1
    _scope.in_branch = outer or (several and (capturing or getattr(_scope, "in_graph", False)))
    try:
        if several and capturing:
            results = iter(_run_on_streams(functions))
        else:
            results = iter([function() for function in functions])
    finally:
        _scope.in_branch = outer
    return tuple(None if branch is None else next(results) for branch in branches)


def _run_on_streams(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    current = torch.cuda.current_stream()
    sides = [
        _side_stream(current.device_index, current.cuda_stream, number) for number in range(1, len(functions))
    ]
    for side in sides:
        side.wait_stream(current)
    results = []
    for stream, function in zip([current, *sides], functions, strict=True):
        with torch.cuda.stream(stream):
            results.append(function())
    for side in sides:
        current.wait_stream(side)
    return results


@contextmanager
def limit_sms(share: float) -> Iterator[None]:
    """Limit products to a share of the GPU's multiprocessors, if they are part of one of several branches.

    share: 0 is no limit.
    """
    in_branch = torch.cuda.is_available() and getattr(_scope, "in_branch", False)
    count = 0
    if in_branch and share:
        count = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    with multiprocessors(int(share * count)):
        yield
