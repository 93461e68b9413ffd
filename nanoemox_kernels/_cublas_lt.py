"""What cublas_lt.py calls: cuBLASLt's C interface, and the plan of a kind of product."""

import ctypes
import json
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _tuning

# cublasLt.h, library_types.h and cublas_api.h of CUDA 12 and 13.
_COMPUTE_32F, _R_32F, _OP_T = 68, 0, 1
TYPES = {torch.float16: 2, torch.bfloat16: 14}
_DESC_TRANSA, _DESC_EPILOGUE, _DESC_BIAS_POINTER, _DESC_SM_COUNT_TARGET = 3, 7, 8, 15
_EPILOGUE_BIAS = 4
_PREF_MAX_WORKSPACE_BYTES, _PREF_REDUCTION_SCHEME_MASK = 1, 3
_PREF_MIN_ALIGNMENT_BYTES = (5, 6, 7, 8)  # of A, B, C, D
_REDUCED_IN_FP32 = 1 | 2  # parts of a sum are added in place or in the type of the sum, not in that of the result
_WORKSPACE = 32 << 20  # bytes that an algorithm may want; what Hopper's best do
ALIGNED = 16  # bytes: below it the fast algorithms fall away


class _Algorithm(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64 * 8)]


class Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", _Algorithm), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]  # fmt: skip


_P, _I, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES = {
    "cublasLtCreate": [_P],
    "cublasLtMatmulDescCreate": [_P, _I, _I],
    "cublasLtMatmulDescDestroy": [_P],
    "cublasLtMatmulDescSetAttribute": [_P, _I, _P, _SIZE],
    "cublasLtMatrixLayoutCreate": [_P, _I, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
    "cublasLtMatrixLayoutDestroy": [_P],
    "cublasLtMatmulPreferenceCreate": [_P],
    "cublasLtMatmulPreferenceDestroy": [_P],
    "cublasLtMatmulPreferenceSetAttribute": [_P, _I, _P, _SIZE],
    "cublasLtMatmulAlgoGetHeuristic": [_P, _P, _P, _P, _P, _P, _P, _I, _P, _P],
    "cublasLtMatmulAlgoCheck": [_P, _P, _P, _P, _P, _P, _P, _P],
    "cublasLtMatmul": [_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _SIZE, _P],
}


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
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # the one that PyTorch has loaded, no other
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
        library.cublasLtGetVersion.restype = _SIZE
        library.cublasLtGetStatusString.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"PyTorch has loaded no {name}: {error}"
    return library, ""


library, why_not = _open()
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


def _call(function: str, *arguments: Any) -> None:
    status = getattr(library, function)(*arguments)
    if status:
        said = library.cublasLtGetStatusString(status)
        raise RuntimeError(f"{function}: {said.decode() if said else status}")


def version() -> int:
    """Of the library; 0 without one."""
    return library.cublasLtGetVersion() if library is not None else 0


@cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", ctypes.byref(handle))
    return handle


class Kind(NamedTuple):
    """What products share that are done with one algorithm: x [M,K], W [N,K], and so on."""

    M: int
    N: int
    K: int
    dtype: torch.dtype
    bias: bool
    sms: int
    alignment: int
    device: int

    def name(self) -> str:
        """As configs/<GPU>.cublaslt.json knows it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.M}x{self.N}x{self.K} {dtype}{' bias' * self.bias}{f' of {self.sms}' if self.sms else ''}"


class Plan:
    """Descriptors of a kind of product, and the algorithm that does it.

    In the column-major terms of the library: out^T [N,M] = W x^T, where W is the transpose of what it sees.
    """

    def __init__(self, kind: Kind, bias: int):
        """bias: its address, from which the library tells the alignment."""
        self.kind, self.lock, self.tuned = kind, threading.Lock(), False
        self.handle, dtype = _handle(kind.device), TYPES[kind.dtype]
        self.desc = ctypes.c_void_p()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.desc), _COMPUTE_32F, _R_32F)
        self._set(_DESC_TRANSA, ctypes.c_int32(_OP_T))
        if kind.bias:
            self._set(_DESC_EPILOGUE, ctypes.c_uint32(_EPILOGUE_BIAS))
            self._set(_DESC_BIAS_POINTER, ctypes.c_void_p(bias))
        if kind.sms:
            self._set(_DESC_SM_COUNT_TARGET, ctypes.c_int32(kind.sms))
        self.weight, self.x, self.out = (
            _layout(dtype, *size) for size in ((kind.K, kind.N), (kind.K, kind.M), (kind.N, kind.M))
        )
        self.found = self._stored() or self.proposed(1)[0]

    def __del__(self) -> None:  # of those that only propose
        if library is None or not all(hasattr(self, name) for name in ("desc", "weight", "x", "out")):
            return
        library.cublasLtMatmulDescDestroy(self.desc)
        for layout in (self.weight, self.x, self.out):
            library.cublasLtMatrixLayoutDestroy(layout)

    def _set(self, attribute: int, value: Any) -> None:
        _call("cublasLtMatmulDescSetAttribute", self.desc, attribute, ctypes.byref(value), ctypes.sizeof(value))

    def _stored(self) -> Found | None:
        """The algorithm of the configuration, where the library still takes it."""
        data = stored(self.kind.device).get(self.kind.name()) if self.kind.alignment == 256 else None
        return None if data is None else self.checked(_Algorithm.from_buffer_copy(bytes.fromhex(data)))

    def proposed(self, count: int) -> list[Found]:
        """At most so many algorithms, those first that the library believes to be fast."""
        preference, returned = ctypes.c_void_p(), ctypes.c_int()
        results = (Found * count)()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        try:
            wanted: list[tuple[int, Any]] = [
                (_PREF_MAX_WORKSPACE_BYTES, ctypes.c_uint64(_WORKSPACE)),
                (_PREF_REDUCTION_SCHEME_MASK, ctypes.c_uint32(_REDUCED_IN_FP32)),
            ]
            wanted += [(a, ctypes.c_uint32(self.kind.alignment)) for a in _PREF_MIN_ALIGNMENT_BYTES]
            for attribute, value in wanted:
                _call(
                    "cublasLtMatmulPreferenceSetAttribute",
                    preference, attribute, ctypes.byref(value), ctypes.sizeof(value),
                )  # fmt: skip
            _call(
                "cublasLtMatmulAlgoGetHeuristic",
                self.handle, self.desc, self.weight, self.x, self.out, self.out, preference, count, results,
                ctypes.byref(returned),
            )  # fmt: skip
        finally:
            library.cublasLtMatmulPreferenceDestroy(preference)
        found = [result for result in results[: returned.value] if result.state == 0]
        if not found:
            raise RuntimeError(f"cuBLASLt has no algorithm for {self.kind}")
        return found

    def checked(self, algorithm: _Algorithm) -> Found | None:
        """The algorithm with the workspace that it wants here; None where it does not serve."""
        result = Found()
        status = library.cublasLtMatmulAlgoCheck(
            self.handle, self.desc, self.weight, self.x, self.out, self.out, ctypes.byref(algorithm),
            ctypes.byref(result),
        )  # fmt: skip
        if status or result.state or result.workspace > _WORKSPACE:
            return None
        result.algorithm = algorithm
        return result

    def run(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, workspace: Tensor | None, found: Found
    ) -> None:
        stream = torch.cuda.current_stream(out.device).cuda_stream
        to = out.data_ptr()
        with self.lock:  # the descriptor holds one bias at a time
            if bias is not None:
                self._set(_DESC_BIAS_POINTER, ctypes.c_void_p(bias.data_ptr()))
            _call(
                "cublasLtMatmul",
                self.handle, self.desc, ctypes.byref(_ONE), weight.data_ptr(), self.weight, x.data_ptr(), self.x,
                ctypes.byref(_ZERO), to, self.out, to, self.out, ctypes.byref(found.algorithm),
                None if workspace is None else workspace.data_ptr(), found.workspace, stream,
            )  # fmt: skip


def _layout(dtype: int, rows: int, columns: int) -> ctypes.c_void_p:
    layout = ctypes.c_void_p()
    _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), dtype, rows, columns, rows)
    return layout


@cache
def stored(device: int) -> dict[str, str]:
    """Kind -> algorithm, in hexadecimal, that configs/ holds for this GPU and this version of the library."""
    path = config_path(torch.cuda.get_device_name(device))
    held = json.loads(path.read_text()) if path.is_file() else {}
    return held["algorithms"] if held.get("version") == version() else {}


def config_path(gpu: str) -> Path:
    return _tuning.path(gpu).with_suffix(".cublaslt.json")
