"""The C++ library of csrc/: opened once, every structure of its header declared here, nothing else knows ctypes."""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch  # before the library: torch's OpenMP runtime is the one that both then share
from torch import Tensor

_PATH = Path(__file__).parent / "libnanoemox_cpu.so"
_ABI = 4
# Structures of csrc/include/nanoemox.h, field by field: * a pointer, ~ a double, else int64.
STRUCTURES = {
    "expert_gate": "dtype *out *gates *experts *w1 *b1 *w2 *b2 *scratch B E T H pooled stride_b stride_e stride_t",
    "expert_fusion": "dtype *token *gates *attention *scratch *audio *vision *audio_weight *audio_bias *vision_weight"
    " *qkv *query_bias *out *out_bias *norm *norm_bias *hidden *hidden_bias *last *last_bias *gate_hidden"
    " *gate_hidden_bias *gate *gate_bias *project *project_bias B Ta Tv E Da Dv H heads W ~eps",
    "temporal_xattn": "dtype *tokens *attention *scratch *x *scores *mix *mix_bias *project *project_bias"
    " B T C M heads P W stride_b stride_t",
    "residual_norm": "dtype *y *hidden *update *weight *bias R N D hidden_stride_r hidden_stride_n update_stride_r"
    " update_stride_n ~eps",
    "quantized_linear": "dtype *out *x *data *scales *bias *scratch M N K precision activation combine stride_x"
    " stride_out run",
    "attention": "dtype *out *q *k *v *bias *scratch n H M T d w sees out_n out_h out_m q_n q_h q_m k_n k_h k_t"
    " v_n v_h v_t bias_w bias_h bias_m ~scale",
    "tap_pool": "dtype *out *hidden R N D mean out_stride_r hidden_stride_r hidden_stride_n ~weight",
}
_KINDS = {"*": ctypes.c_void_p, "~": ctypes.c_double}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def _structure(name: str) -> type[ctypes.Structure]:
    fields = [(field.strip("*~"), _KINDS.get(field[0], ctypes.c_int64)) for field in STRUCTURES[name].split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Args = {name: _structure(name) for name in STRUCTURES}


def _open() -> tuple[Any, str]:
    """(the library or None, why not)."""
    if os.environ.get("NANOEMOX_KERNELS") == "reference":
        return None, "NANOEMOX_KERNELS=reference"
    if not _PATH.is_file():
        return None, "csrc was not built; NANOEMOX_BUILD=cpu pip install . says what it lacks"
    library = ctypes.CDLL(str(_PATH))
    for name in ("nx_isa", "nx_isa_levels", "nx_last_error"):
        getattr(library, name).restype = ctypes.c_char_p
    library.nx_set_isa.argtypes = [ctypes.c_char_p]
    if library.nx_abi_version() != _ABI:
        return None, f"{_PATH.name} is of another version; install again"
    library.nx_cpu_expert_fusion_scratch.argtypes = [ctypes.c_int64] * 5
    library.nx_cpu_expert_fusion_scratch.restype = ctypes.c_int64
    library.nx_cpu_quantized_linear_scratch.argtypes = [ctypes.c_int64] * 2
    library.nx_cpu_quantized_linear_scratch.restype = ctypes.c_int64
    library.nx_cpu_attention_scratch.argtypes = [ctypes.c_int64] * 2
    library.nx_cpu_attention_scratch.restype = ctypes.c_int64
    library.nx_cpu_read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.nx_cpu_read.restype = ctypes.c_int64
    library.nx_engine_create.restype = ctypes.c_void_p
    library.nx_engine_create.argtypes = [ctypes.c_void_p]
    library.nx_engine_destroy.argtypes = [ctypes.c_void_p]
    library.nx_engine_step.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 6]
    for name, args in _Args.items():
        getattr(library, f"nx_cpu_{name}").argtypes = [ctypes.POINTER(args)]
    return library, ""


library, why_not = _open()


def set_isa(name: str) -> None:
    """Use an instruction set: one of `isa_levels()`. Raises ValueError."""
    if library.nx_set_isa(name.encode()):
        raise ValueError(f"instruction set {name!r}: this machine offers {', '.join(isa_levels())}")


def isa() -> str:
    """The instruction set in use."""
    return library.nx_isa().decode()


def isa_levels() -> list[str]:
    """Instruction sets that were built and that this CPU has, lowest first."""
    return library.nx_isa_levels().decode().split()


if library is not None and os.environ.get("NANOEMOX_ISA"):
    set_isa(os.environ["NANOEMOX_ISA"])


def takes(*tensors: Tensor | None) -> bool:
    """Whether the library holds kernels for these: all fp32 or all bf16."""
    dtypes = {t.dtype for t in tensors if t is not None}
    return len(dtypes) == 1 and dtypes <= _DTYPES.keys()


def call(name: str, dtype: torch.dtype, *values: Tensor | float | None) -> None:
    """Run nx_cpu_<name>; `values` are the fields after dtype, tensors for pointers."""
    args = _Args[name](_DTYPES[dtype], *(v.data_ptr() if isinstance(v, Tensor) else v for v in values))
    if getattr(library, f"nx_cpu_{name}")(args):
        raise RuntimeError(library.nx_last_error().decode())


def engine_create(config: Any) -> int:
    """Raises ValueError: what the library refuses."""
    handle = library.nx_engine_create(config)
    if handle is None:
        raise ValueError(library.nx_last_error().decode())
    return handle


def engine_step(*args: Any) -> None:
    """Raises ValueError: what the library refuses."""
    if library.nx_engine_step(*args):
        raise ValueError(library.nx_last_error().decode())


def rows(tensor: Tensor) -> Tensor:
    """The tensor with a last stride of 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def vector(tensor: Tensor) -> Tensor:
    """A bias as the library takes it: fp32, contiguous."""
    return tensor.float().contiguous()
