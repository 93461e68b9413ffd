"""Registration of the ops with PyTorch's dispatcher; which implementation serves each of them, and why."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from . import _native

_lib = torch.library.Library("nanoemox", "DEF")
_KERNELS: dict[str, set[str]] = {}
# Op -> its implementation on CUDA, for aot.py, which records launches without a GPU.
CUDA_IMPLEMENTATIONS: dict[str, Callable] = {}
# Dtypes that the Triton kernels support; the definition supports all float dtypes.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Status:
    """Which implementation serves an op on a kind of device, and why."""

    op: str
    device: str
    implementation: str
    why: str


def register(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    cuda: Callable | None = None,
    cpu: Callable | None = None,
    grad: tuple | None = None,
) -> Any:
    """Define the op nanoemox::<name>. The implementation is selected before the call, never after a failure.

    Args:
        schema: PyTorch schema; it starts with the name.
        reference: the definition; serves every device without a kernel.
        fake: returns empty results of the right shapes and dtypes, for torch.compile.
        cuda: imports and calls the Triton launcher; if None, CUDA runs the reference.
        cpu: calls the C++ library; if None, or if the library was not built, the CPU runs the reference.
        grad: (setup_context, backward) of functional ops.

    Returns:
        The op, to be called with the arguments of the schema.
    """
    name = schema.partition("(")[0]
    _lib.define(schema)
    _lib.impl(name, reference, "CompositeExplicitAutograd")
    if cuda is not None:
        CUDA_IMPLEMENTATIONS[name] = cuda
        if _triton():
            _lib.impl(name, cuda, "CUDA")
    if cpu is not None and _native.library is not None:
        _lib.impl(name, cpu, "CPU")
    torch.library.register_fake(f"nanoemox::{name}", fake, lib=_lib)
    if grad is not None:
        torch.library.register_autograd(f"nanoemox::{name}", grad[1], setup_context=grad[0], lib=_lib)
    _KERNELS[name] = {device for device, kernel in (("cuda", cuda), ("cpu", cpu)) if kernel is not None}
    return getattr(torch.ops.nanoemox, name).default


def _triton() -> bool:
    return os.environ.get("NANOEMOX_KERNELS") != "reference" and find_spec("triton") is not None


def status() -> list[Status]:
    """The implementation of each op on each kind of device, and why it was selected."""
    cpu = ("reference", _native.why_not)
    if _native.library is not None:
        cpu = ("c++", f"csrc was built; {_native.isa()} of {', '.join(_native.isa_levels())}")
    cuda = ("triton", "Triton is installed") if _triton() else ("reference", "Triton is not installed")
    if os.environ.get("NANOEMOX_KERNELS") == "reference":
        cuda = ("reference", "NANOEMOX_KERNELS=reference")
    return [
        Status(name, device, *(served if device in kernels else ("reference", "no kernel")))
        for name, kernels in _KERNELS.items()
        for device, served in (("cuda", cuda), ("cpu", cpu))
    ]
