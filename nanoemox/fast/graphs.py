"""Replays a part's forward as a CUDA graph, so that a GPU does not wait for Python between its kernels."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 8  # graphs that a part keeps, each with the memory of its temporaries


class Replayed(nn.Module):
    """A part of one input whose forward is marked with `replayed`. Moving it drops its graphs."""

    replays = True  # False: always the plain forward

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Replayed":
        self.__dict__.pop("_graphs", None)
        return super()._apply(fn, recurse)


def replayed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The first call of a shape, dtype and stream is plain, the second is captured, later ones replay it.

    Plain as well: outside of inference mode, on another device than a GPU, and within another's capture.
    """

    @wraps(forward)
    def call(self: Replayed, x: Tensor) -> Any:
        if not (self.replays and _may(x)):
            return forward(self, x)
        graphs = self.__dict__.setdefault("_graphs", _Graphs())
        return graphs(lambda given: forward(self, given), x)

    return call


def _may(x: Tensor) -> bool:
    if x.device.type != "cuda" or not torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
        return False
    here = x.device.index == torch.cuda.current_device()
    return here and x.numel() > 0 and not torch.cuda.is_current_stream_capturing()


class _Graphs:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, Tensor, Any] | None] = OrderedDict()

    def __deepcopy__(self, memo: dict) -> "_Graphs":
        return _Graphs()  # a graph belongs to the tensors that it was captured with

    def __reduce__(self) -> tuple:
        return _Graphs, ()

    def __call__(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        key = (x.shape, x.dtype, torch.cuda.current_stream().cuda_stream)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = None
                while len(self._kept) > _MOST:
                    self._kept.popitem(last=False)
                return function(x)
            self._kept.move_to_end(key)
            held = self._kept[key]
            if held is None:
                held = self._kept[key] = _capture(function, x)
            graph, given, out = held
            given.copy_(x)
            graph.replay()
            return tuple(t.clone() for t in out) if isinstance(out, tuple) else out.clone()


def _capture(function: Callable[[Tensor], Any], x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Any]:
    given, graph = x.contiguous().clone(), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(given)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = function(given)
    return graph, given, out
