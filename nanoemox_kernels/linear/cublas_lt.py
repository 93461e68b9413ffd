"""Matrix products on a limited number of a GPU's multiprocessors, through the public C API of cuBLASLt.

PyTorch's own products use the whole GPU, unless a private global setting limits them; parallel branches of a
CUDA graph need a part each. The library is the one that PyTorch has loaded, the algorithm the first that its
heuristic returns for the shapes. Nothing here synchronises, and memory comes from PyTorch's allocator:
products may be captured.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _tuning

# Constants of cublasLt.h, library_types.h and cublas_api.h of CUDA 12 and 13.
_COMPUTE_32F, _R_32F, _OP_T, _EPILOGUE_BIAS = 68, 0, 1, 4
_TYPES = {torch.float16: 2, torch.bfloat16: 14}
# Attributes of cublasLtMatmulDesc_t.
_TRANSA, _EPILOGUE, _BIAS_POINTER, _SM_COUNT_TARGET = 3, 7, 8, 15
# Attributes of cublasLtMatmulPreference_t; the alignments are those of A, B, C and D.
_MAX_WORKSPACE, _REDUCTION_SCHEMES, _MIN_ALIGNMENTS = 1, 3, (5, 6, 7, 8)
# Reduction schemes that add partial sums in place or in fp32, not in the dtype of the result.
_REDUCED_IN_FP32 = 1 | 2
_WORKSPACE = 32 << 20  # bytes; the best algorithms of Hopper need as much
_ALIGNMENTS = (256, 16)  # bytes: of PyTorch's allocations, and the least that the fast algorithms accept

_P, _I, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES = {
    "cublasLtCreate": [_P],
    "cublasLtMatmulDescCreate": [_P, _I, _I],
    "cublasLtMatmulDescSetAttribute": [_P, _I, _P, _SIZE],
    "cublasLtMatrixLayoutCreate": [_P, _I, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
    "cublasLtMatmulPreferenceCreate": [_P],
    "cublasLtMatmulPreferenceDestroy": [_P],
    "cublasLtMatmulPreferenceSetAttribute": [_P, _I, _P, _SIZE],
    "cublasLtMatmulAlgoGetHeuristic": [_P, _P, _P, _P, _P, _P, _P, _I, _P, _P],
    "cublasLtMatmul": [_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _SIZE, _P],
}


class _HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", _SIZE), ("state", _I), ("waves", ctypes.c_float),
        ("reserved", _I * 4),
    ]  # fmt: skip


def _open() -> tuple[Any, str]:
    """The library, or None and the reason."""
    if os.environ.get("NANOEMOX_KERNELS") == "reference":
        return None, "NANOEMOX_KERNELS=reference"
    if torch.version.cuda is None:
        return None, "PyTorch was built without CUDA"
    if not sys.platform.startswith("linux"):
        return None, f"supported on Linux only, not on {sys.platform}"
    name = f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}"
    try:
        # RTLD_NOLOAD: the library that PyTorch has loaded, no other.
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
        library.cublasLtGetStatusString.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"PyTorch has loaded no {name}: {error}"
    return library, ""


_library, why_not = _open()  # why_not: why there is no library, "" if there is one
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)
_limit = threading.local()  # .sms: the limit of this thread, set by `multiprocessors`


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_library, function)(*arguments)
    if status:
        message = _library.cublasLtGetStatusString(status)
        raise RuntimeError(f"{function}: {message.decode() if message else status}")


def share() -> int:
    """The number of multiprocessors that products of this thread may use; 0: all."""
    return getattr(_limit, "sms", 0)


@contextmanager
def multiprocessors(sms: int) -> Iterator[None]:
    """Within this context, products of this thread use at most `sms` multiprocessors; 0: all."""
    previous = share()
    _limit.sms = sms
    try:
        yield
    finally:
        _limit.sms = previous


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `linear` supports these tensors.

    They must be contiguous, of one 16-bit dtype, on one GPU of compute capability 8.0 or higher, and aligned
    to 16 bytes; the sizes of the weight must be multiples of 8.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    fits = x.ndim > 0 and weight.ndim == 2 and x.shape[-1] == weight.shape[1] and min(weight.shape) > 0
    if not fits or _library is None or x.device.type != "cuda" or x.dtype not in _TYPES:
        return False
    if torch.cuda.get_device_capability(x.device) < (8, 0):  # no support for bf16
        return False
    if any(size % 8 for size in weight.shape) or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    return all(
        t.dtype == x.dtype
        and t.device == x.device
        and t.is_contiguous()
        and t.data_ptr() % _ALIGNMENTS[1] == 0
        for t in tensors
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, accumulated in fp32, within the limit set by `multiprocessors`. Not differentiable.

    Args:
        x: [...,K], fp16 or bf16, on a GPU; see `serves` for the conditions.
        weight: W [N,K], in the dtype of x.
        bias: [N] in the dtype of x, or None.

    Returns:
        [...,N], contiguous, in the dtype of x.

    Raises:
        RuntimeError: there is no library, or it returns an error.
        ValueError: tensors that it does not support.
    """
    if _library is None:
        raise RuntimeError(f"no cuBLASLt: {why_not}")
    if not serves(x, weight, bias):
        tensors = [f"{t.dtype} {list(t.shape)} {t.device}" for t in (x, weight, bias) if t is not None]
        raise ValueError(
            "want x [..., K], weight [N, K] and bias [N] contiguous in one 16-bit dtype on one GPU, N and K "
            f"multiples of 8, aligned to {_ALIGNMENTS[1]} bytes; got {', '.join(tensors)}"
        )
    out = torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)
    if out.numel():
        (N, K), M = weight.shape, x.numel() // x.shape[-1]
        aligned = all(t is None or t.data_ptr() % _ALIGNMENTS[0] == 0 for t in (x, weight, bias, out))
        alignment = _ALIGNMENTS[0] if aligned else _ALIGNMENTS[1]
        kind = _Kind(M, N, K, x.dtype, bias is not None, share(), alignment, x.device.index)
        with _tuning.on_device_of(x):
            _product(kind).run(x, weight, bias, out)
    return out


class _Kind(NamedTuple):
    """What determines the algorithm of a product x [M,K] times W [N,K]."""

    M: int
    N: int
    K: int
    dtype: torch.dtype
    bias: bool
    sms: int
    alignment: int
    device: int


@cache
def _product(kind: _Kind) -> "_Product":
    return _Product(kind)


@cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = _P()
    with torch.cuda.device(device):
        _call("cublasLtCreate", ctypes.byref(handle))
    return handle


class _Product:
    """The descriptors and the algorithm of a kind of product; they are never freed.

    In the column-major convention of the library: out^T [N,M] = W x^T, where W is the transpose of its
    operand A.
    """

    def __init__(self, kind: _Kind):
        self._lock = threading.Lock()
        self._handle = _handle(kind.device)
        self._description = _P()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self._description), _COMPUTE_32F, _R_32F)
        self._describe(_TRANSA, ctypes.c_int32(_OP_T))
        if kind.bias:
            self._describe(_EPILOGUE, ctypes.c_uint32(_EPILOGUE_BIAS))
        if kind.sms:
            self._describe(_SM_COUNT_TARGET, ctypes.c_int32(kind.sms))
        sizes = (kind.K, kind.N), (kind.K, kind.M), (kind.N, kind.M)
        self._weight, self._x, self._out = (_layout(_TYPES[kind.dtype], *size) for size in sizes)
        self._heuristic = self._first_algorithm(kind)

    def _describe(self, attribute: int, value: Any) -> None:
        _set("cublasLtMatmulDescSetAttribute", self._description, attribute, value)

    def _first_algorithm(self, kind: _Kind) -> _HeuristicResult:
        result, count, preference = _HeuristicResult(), _I(), _P()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        try:
            attributes: dict[int, Any] = {_MAX_WORKSPACE: ctypes.c_uint64(_WORKSPACE)}
            attributes[_REDUCTION_SCHEMES] = ctypes.c_uint32(_REDUCED_IN_FP32)
            for alignment in _MIN_ALIGNMENTS:
                attributes[alignment] = ctypes.c_uint32(kind.alignment)
            for attribute, value in attributes.items():
                _set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value)
            _call(
                "cublasLtMatmulAlgoGetHeuristic",
                self._handle, self._description, self._weight, self._x, self._out, self._out, preference, 1,
                ctypes.byref(result), ctypes.byref(count),
            )  # fmt: skip
        finally:
            _library.cublasLtMatmulPreferenceDestroy(preference)
        if not count.value or result.state:
            raise RuntimeError(f"cuBLASLt has no algorithm for {kind}")
        return result

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out [M,N] = x [M,K] W^T + bias."""
        algorithm, workspace_bytes = self._heuristic.algorithm, self._heuristic.workspace
        workspace = None
        if workspace_bytes:  # PyTorch's allocator ties it to the stream or, during a capture, to the graph
            workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=x.device)
        with self._lock:  # the descriptor has one bias at a time
            if bias is not None:
                self._describe(_BIAS_POINTER, _P(bias.data_ptr()))
            _call(
                "cublasLtMatmul",
                self._handle, self._description, ctypes.byref(_ONE), weight.data_ptr(), self._weight,
                x.data_ptr(), self._x, ctypes.byref(_ZERO), out.data_ptr(), self._out, out.data_ptr(),
                self._out, ctypes.byref(algorithm), None if workspace is None else workspace.data_ptr(),
                workspace_bytes, torch.cuda.current_stream(out.device).cuda_stream,
            )  # fmt: skip


def _set(function: str, description: ctypes.c_void_p, attribute: int, value: Any) -> None:
    _call(function, description, attribute, ctypes.byref(value), ctypes.sizeof(value))


def _layout(dtype: int, rows: int, columns: int) -> ctypes.c_void_p:
    layout = _P()
    _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), dtype, rows, columns, rows)
    return layout
