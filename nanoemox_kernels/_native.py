"""The C++ library of csrc/: loading, its C structures and calls.

Only this module accesses the library through ctypes. Two other modules use ctypes for other libraries:
`linear/cublas_lt.py` for cuBLASLt, and `nanoemox.fast.layers.memory` for the C library.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import torch  # before the library: both must use the OpenMP runtime that PyTorch loads
from torch import Tensor

_PATH = Path(__file__).parent / "libnanoemox_cpu.so"
_ABI = 4  # NX_ABI_VERSION of the header
# The structures of csrc/include/nanoemox.h without their prefix nx_, in the order of the header. A field is
# an int64, a pointer (*), a double (~) or a matrix (name:matrix). tests/test_native_library.py compares them
# with the header.
STRUCTURES = {
    "expert_gate_args": "dtype *out *gates *experts *w1 *b1 *w2 *b2 *scratch B E T H pooled stride_b stride_e"
    " stride_t",
    "expert_fusion_args": "dtype *token *gates *attention *scratch *audio *vision *audio_weight *audio_bias"
    " *vision_weight *qkv *query_bias *out *out_bias *norm *norm_bias *hidden *hidden_bias *last *last_bias"
    " *gate_hidden *gate_hidden_bias *gate *gate_bias *project *project_bias B Ta Tv E Da Dv H heads W ~eps",
    "temporal_xattn_args": "dtype *tokens *attention *scratch *x *scores *mix *mix_bias *project"
    " *project_bias B T C M heads P W stride_b stride_t",
    "residual_norm_args": "dtype *y *hidden *update *weight *bias R N D hidden_stride_r hidden_stride_n"
    " update_stride_r update_stride_n ~eps",
    "tap_pool_args": "dtype *out *hidden R N D mean out_stride_r hidden_stride_r hidden_stride_n ~weight",
    "attention_args": "dtype *out *q *k *v *bias *scratch n H M T d w causal_offset out_n out_h out_m q_n q_h"
    " q_m k_n k_h k_t v_n v_h v_t bias_w bias_h bias_m ~scale",
    "matrix": "*data *scales",
    "quantized_linear_args": "dtype *out *x w:matrix *bias *scratch M N K precision activation combine"
    " stride_x stride_out run",
    "engine_layer": "q:matrix k:matrix v:matrix o:matrix gate:matrix up:matrix down:matrix *input_norm"
    " *post_norm *bias *o_bias *gate_bias *up_bias *down_bias",
    "engine_config": "precision kv_precision head_precision dtype layers width mlp heads kv_heads head_size"
    " vocab slots capacity threads *layer *norm head:matrix *exact_head *embedding *cosines *sines *keys"
    " *values ~eps",
}
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # NX_F32, NX_BF16

Structure = ctypes.Structure
Value = Tensor | float | Structure | ctypes.Array | None


def _declare(structures: dict[str, str]) -> dict[str, type[ctypes.Structure]]:
    """The ctypes classes of STRUCTURES."""
    types: dict[str, type[ctypes.Structure]] = {}
    for name, fields in structures.items():
        declared: list[tuple[str, type]] = []
        for field in fields.split():
            label, _, nested = field.partition(":")
            if nested:
                declared.append((label, types[nested]))
            elif label[0] == "*":
                declared.append((label[1:], ctypes.c_void_p))
            elif label[0] == "~":
                declared.append((label[1:], ctypes.c_double))
            else:
                declared.append((label, ctypes.c_int64))
        types[name] = type(name, (ctypes.Structure,), {"_fields_": declared})
    return types


_types = _declare(STRUCTURES)


def _open() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    if os.environ.get("NANOEMOX_KERNELS") == "reference":
        return None, "NANOEMOX_KERNELS=reference"
    if not _PATH.is_file():
        return None, "csrc was not built; NANOEMOX_BUILD=cpu pip install . says what it lacks"
    opened = ctypes.CDLL(str(_PATH))
    if opened.nx_abi_version() != _ABI:
        return None, f"{_PATH.name} is of another version; install again"
    int64, pointer = ctypes.c_int64, ctypes.c_void_p
    for name in ("nx_isa", "nx_isa_levels", "nx_last_error"):
        getattr(opened, name).restype = ctypes.c_char_p
    opened.nx_set_isa.argtypes = [ctypes.c_char_p]
    for name, parameters in (
        ("nx_cpu_expert_fusion_scratch", [int64] * 5),
        ("nx_cpu_quantized_linear_scratch", [int64] * 2),
        ("nx_cpu_attention_scratch", [int64] * 2),
        ("nx_cpu_read", [pointer, int64]),
    ):
        getattr(opened, name).argtypes = parameters
        getattr(opened, name).restype = int64
    for name, args in _types.items():
        if name.endswith("_args"):
            getattr(opened, f"nx_cpu_{name.removesuffix('_args')}").argtypes = [ctypes.POINTER(args)]
    opened.nx_engine_create.argtypes = [ctypes.POINTER(_types["engine_config"])]
    opened.nx_engine_create.restype = pointer
    opened.nx_engine_destroy.argtypes = [pointer]
    opened.nx_engine_destroy.restype = None
    opened.nx_engine_step.argtypes = [pointer, int64, *[pointer] * 6]
    return opened, ""


library, why_not = _open()  # why_not: why there is no library, "" if there is one


def _loaded() -> ctypes.CDLL:
    if library is None:
        raise RuntimeError(f"the C++ library is not available: {why_not}")
    return library


def set_isa(name: str) -> None:
    """Select an instruction set, one of `isa_levels()`. Raises ValueError for any other name."""
    if _loaded().nx_set_isa(name.encode()):
        raise ValueError(f"instruction set {name!r}: this machine offers {', '.join(isa_levels())}")


def isa() -> str:
    """The instruction set in use."""
    return _loaded().nx_isa().decode()


def isa_levels() -> list[str]:
    """The instruction sets that were built and that this CPU supports, lowest first."""
    return _loaded().nx_isa_levels().decode().split()


if library is not None and os.environ.get("NANOEMOX_ISA"):
    set_isa(os.environ["NANOEMOX_ISA"])


def takes(*tensors: Tensor | None) -> bool:
    """Whether the library supports the dtype of these tensors: all fp32 or all bf16."""
    dtypes = {t.dtype for t in tensors if t is not None}
    return len(dtypes) == 1 and dtypes <= DTYPES.keys()


def structure(name: str, *values: Value, **fields: Value) -> ctypes.Structure:
    """Create a structure of STRUCTURES.

    Args:
        name: a key of STRUCTURES.
        values, fields: the fields by position or by name. Tensors and arrays become pointers, so the
            caller must keep them alive.
    """
    named = {label: _field(value) for label, value in fields.items()}
    return _types[name](*map(_field, values), **named)


def _field(value: Value) -> float | ctypes.Structure | None:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    return value


def array(name: str, items: Sequence[ctypes.Structure]) -> ctypes.Array:
    """A C array of structures of one kind."""
    return (_types[name] * len(items))(*items)


def int64_array(values: Sequence[int]) -> ctypes.Array:
    """A C array of int64."""
    return (ctypes.c_int64 * len(values))(*values)


def call(name: str, dtype: torch.dtype, *values: Value) -> None:
    """Call the kernel nx_cpu_<name>.

    Args:
        name: the kernel.
        dtype: of its tensors of type T, fp32 or bf16.
        values: the fields of its structure after `dtype`, tensors for pointers.

    Raises:
        RuntimeError: the library rejects the arguments; it has its message.
    """
    args = structure(f"{name}_args", DTYPES[dtype], *values)
    if getattr(_loaded(), f"nx_cpu_{name}")(args):
        raise RuntimeError(_loaded().nx_last_error().decode())


def engine_create(config: ctypes.Structure) -> int:
    """Create a decode engine and return its handle. Raises ValueError if the library rejects the config."""
    handle = _loaded().nx_engine_create(config)
    if handle is None:
        raise ValueError(_loaded().nx_last_error().decode())
    return handle


def engine_step(
    handle: int,
    batch: int,
    slots: ctypes.Array,
    positions: ctypes.Array,
    ids: ctypes.Array | None,
    embedded: int | None,
    logits: int,
    best: int,
) -> None:
    """Run nx_engine_step; tensors are passed as addresses. Raises ValueError if it rejects the arguments."""
    if _loaded().nx_engine_step(handle, batch, slots, positions, ids, embedded, logits, best):
        raise ValueError(_loaded().nx_last_error().decode())


def engine_destroy(handle: int) -> None:
    """End the threads of an engine and free its memory."""
    _loaded().nx_engine_destroy(handle)


def read(tensor: Tensor) -> None:
    """Read the memory of a contiguous tensor once, on all threads."""
    _loaded().nx_cpu_read(tensor.data_ptr(), tensor.nbytes)


def expert_fusion_scratch(B: int, Ta: int, Tv: int, E: int, H: int) -> Tensor:
    """The scratch memory of expert_fusion, fp32."""
    return torch.empty(_loaded().nx_cpu_expert_fusion_scratch(B, Ta, Tv, E, H))


def quantized_linear_scratch(M: int, K: int) -> Tensor:
    """The scratch memory of quantized_linear for x [M,K]."""
    return _aligned(_loaded().nx_cpu_quantized_linear_scratch(M, K))


def attention_scratch(T: int, d: int) -> Tensor:
    """The scratch memory of attention for keys [T,d]."""
    return _aligned(_loaded().nx_cpu_attention_scratch(T, d))


def _aligned(nbytes: int, alignment: int = 64) -> Tensor:
    """Uninitialised memory, uint8 [nbytes], aligned to a cache line."""
    buffer = torch.empty(nbytes + alignment, dtype=torch.uint8)
    offset = -buffer.data_ptr() % alignment
    return buffer[offset : offset + nbytes]


def rows(tensor: Tensor) -> Tensor:
    """The tensor, copied unless its last stride is 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def vector(tensor: Tensor) -> Tensor:
    """The tensor as the library takes biases: fp32, contiguous."""
    return tensor.float().contiguous()
