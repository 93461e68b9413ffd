"""Products on some of a GPU's multiprocessors, by the public C interface of the cuBLASLt that PyTorch has loaded.

PyTorch's own products take the whole GPU, or what a private global setting leaves them; branches of a CUDA graph that
run side by side want a share each. The algorithm is the first that the library proposes for a kind of product. Nothing
here synchronises or allocates behind PyTorch's back: products may be captured.
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

# cublasLt.h, library_types.h and cublas_api.h of CUDA 12 and 13.
_COMPUTE_32F, _R_32F, _OP_T, _EPILOGUE_BIAS = 68, 0, 1, 4
_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_TRANSA, _EPILOGUE, _BIAS_POINTER, _SM_COUNT_TARGET = 3, 7, 8, 15  # of a product's description
_MAX_WORKSPACE, _REDUCTION_SCHEMES, _MIN_ALIGNMENTS = (
    1,
    3,
    (5, 6, 7, 8),
)  # of a preference; alignments of A, B, C and D
_REDUCED_IN_FP32 = (
    1 | 2
)  # parts of a sum are added in place or in the type of the sum, not in that of the result
_WORKSPACE = 32 << 20  # bytes that an algorithm may want; what Hopper's best do
_ALIGNMENTS = (256, 16)  # bytes: what PyTorch allocates, and below which the fast algorithms fall away

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


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", _SIZE), ("state", _I), ("waves", ctypes.c_float),
        ("reserved", _I * 4),
    ]  # fmt: skip


def _open() -> tuple[Any, str]:
    """(the library or None, why not)."""
    if os.environ.get("NANOEMOX_KERNELS") == "reference":
        return None, "NANOEMOX_KERNELS=reference"
    if torch.version.cuda is None:
        return None, "PyTorch was built without CUDA"
    if not sys.platform.startswith("linux"):
        return None, f"it is looked for on Linux alone, not on {sys.platform}"
    name = f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}"
    try:
        library = ctypes.CDLL(
            name, mode=os.RTLD_NOLOAD | os.RTLD_NOW
        )  # the one that PyTorch has loaded, no other
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
        library.cublasLtGetStatusString.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"PyTorch has loaded no {name}: {error}"
    return library, ""


_library, why_not = _open()  # why_not: "" where the library is
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)
_here = threading.local()  # .sms: what `multiprocessors` has set for this thread


def _call(function: str, *arguments: Any) -> None:
    if status := getattr(_library, function)(*arguments):
        said = _library.cublasLtGetStatusString(status)
        raise RuntimeError(f"{function}: {said.decode() if said else status}")


def share() -> int:
    """Multiprocessors that this thread's products are to take, 0: all."""
    return getattr(_here, "sms", 0)


@contextmanager
def multiprocessors(sms: int) -> Iterator[None]:
    """Products that this thread calls within take so many multiprocessors, 0: all."""
    before, _here.sms = share(), sms
    try:
        yield
    finally:
        _here.sms = before


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `linear` takes these: contiguous, of one 16-bit dtype, on one GPU, widths in multiples of 8, aligned."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    shapes = x.ndim > 0 and weight.ndim == 2 and x.shape[-1] == weight.shape[1] and min(weight.shape) > 0
    if not shapes or _library is None or x.device.type != "cuda" or x.dtype not in _TYPES:
        return False
    if torch.cuda.get_device_capability(x.device) < (8, 0):  # no bf16 there, and none of its algorithms
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
    """x W^T + bias, summed in fp32, on the multiprocessors that `multiprocessors` has set. No gradient.

    Args:
        x: [...,K]; weight: [N,K]; bias: [N] or None; see `serves`.

    Returns:
        [...,N], contiguous, in the dtype of x.

    Raises:
        RuntimeError: no library, or one that refuses. ValueError: tensors that it does not take.
    """
    if _library is None:
        raise RuntimeError(f"no cuBLASLt: {why_not}")
    if not serves(x, weight, bias):
        given = [f"{t.dtype} {list(t.shape)} {t.device}" for t in (x, weight, bias) if t is not None]
        raise ValueError(
            "want x [..., K], weight [N, K] and bias [N] contiguous in one 16-bit dtype on one GPU, N and K multiples "
            f"of 8, aligned to {_ALIGNMENTS[1]} bytes; got {', '.join(given)}"
        )
    out = torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)
    if out.numel():
        M, (N, K) = x.numel() // x.shape[-1], weight.shape
        whole = all(t is None or t.data_ptr() % _ALIGNMENTS[0] == 0 for t in (x, weight, bias, out))
        kind = _Kind(M, N, K, x.dtype, bias is not None, share(), _ALIGNMENTS[not whole], x.device.index)
        with _tuning.on_device_of(x):
            _product(kind).run(x, weight, bias, out)
    return out


class _Kind(NamedTuple):
    """What products share that one algorithm does: x [M,K], W [N,K], and so on."""

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
    """Descriptions of a kind of product, kept for good, and the algorithm that does it.

    In the column-major terms of the library: out^T [N,M] = W x^T, where W is the transpose of what it sees.
    """

    def __init__(self, kind: _Kind):
        self._lock, self._handle, self._description = threading.Lock(), _handle(kind.device), _P()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self._description), _COMPUTE_32F, _R_32F)
        self._describe(_TRANSA, ctypes.c_int32(_OP_T))
        if kind.bias:
            self._describe(_EPILOGUE, ctypes.c_uint32(_EPILOGUE_BIAS))
        if kind.sms:
            self._describe(_SM_COUNT_TARGET, ctypes.c_int32(kind.sms))
        sizes = (kind.K, kind.N), (kind.K, kind.M), (kind.N, kind.M)
        self._weight, self._x, self._out = (_layout(_TYPES[kind.dtype], *size) for size in sizes)
        self._found = self._proposed(kind)

    def _describe(self, attribute: int, value: Any) -> None:
        _set("cublasLtMatmulDescSetAttribute", self._description, attribute, value)

    def _proposed(self, kind: _Kind) -> _Found:
        found, count, preference = _Found(), _I(), _P()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        try:
            wanted: list[tuple[int, Any]] = [(_MAX_WORKSPACE, ctypes.c_uint64(_WORKSPACE))]
            wanted += [(_REDUCTION_SCHEMES, ctypes.c_uint32(_REDUCED_IN_FP32))]
            wanted += [(alignment, ctypes.c_uint32(kind.alignment)) for alignment in _MIN_ALIGNMENTS]
            for attribute, value in wanted:
                _set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value)
            _call(
                "cublasLtMatmulAlgoGetHeuristic",
                self._handle, self._description, self._weight, self._x, self._out, self._out, preference, 1,
                ctypes.byref(found), ctypes.byref(count),
            )  # fmt: skip
        finally:
            _library.cublasLtMatmulPreferenceDestroy(preference)
        if not count.value or found.state:
            raise RuntimeError(f"cuBLASLt proposes no algorithm for {kind}")
        return found

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        found, to = self._found, out.data_ptr()
        # From PyTorch's allocator: it is the stream's own, and within a capture the graph's.
        workspace = (
            torch.empty(found.workspace, dtype=torch.uint8, device=x.device) if found.workspace else None
        )
        with self._lock:  # the description holds one bias at a time
            if bias is not None:
                self._describe(_BIAS_POINTER, _P(bias.data_ptr()))
            _call(
                "cublasLtMatmul",
                self._handle, self._description, ctypes.byref(_ONE), weight.data_ptr(), self._weight, x.data_ptr(),
                self._x, ctypes.byref(_ZERO), to, self._out, to, self._out, ctypes.byref(found.algorithm),
                None if workspace is None else workspace.data_ptr(), found.workspace,
                torch.cuda.current_stream(out.device).cuda_stream,
            )  # fmt: skip


def _set(function: str, description: ctypes.c_void_p, attribute: int, value: Any) -> None:
    _call(function, description, attribute, ctypes.byref(value), ctypes.sizeof(value))


def _layout(dtype: int, rows: int, columns: int) -> ctypes.c_void_p:
    layout = _P()
    _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), dtype, rows, columns, rows)
    return layout
