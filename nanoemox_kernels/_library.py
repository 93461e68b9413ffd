"""Registers ops with PyTorch's dispatcher and keeps the list of which implementation serves each of them, and why."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

_lib = torch.library.Library("nanoemox", "DEF")
_HAS_TRITON: dict[str, bool] = {}
# What the kernels take; anything else goes to the definition, which takes everything.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Status:
    """Which implementation serves an op on a kind of device, and why."""

    op: str
    device: str
    implementation: str
    why: str


def register(
    schema: str, *, reference: Callable, fake: Callable, cuda: Callable | None = None, grad: tuple | None = None
) -> Any:
    """Define nanoemox::<name>. On a device without a kernel it runs `reference`; nothing falls back after a failure.

    Args:
        schema: PyTorch schema, name first.
        cuda: the Triton launcher behind a function that imports it; left out, CUDA runs the reference too.
        grad: (setup_context, backward) for functional ops.
    """
    name = schema.partition("(")[0]
    _lib.define(schema)
    _lib.impl(name, reference, "CompositeExplicitAutograd")
    if cuda is not None and _triton():
        _lib.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"nanoemox::{name}", fake, lib=_lib)
    if grad is not None:
        torch.library.register_autograd(f"nanoemox::{name}", grad[1], setup_context=grad[0], lib=_lib)
    _HAS_TRITON[name] = cuda is not None
    return getattr(torch.ops.nanoemox, name).default


def _triton() -> bool:
    return os.environ.get("NANOEMOX_KERNELS") != "reference" and find_spec("triton") is not None


def status() -> list[Status]:
    """A row per op and kind of device."""
    rows = []
    for name, has_triton in _HAS_TRITON.items():
        if os.environ.get("NANOEMOX_KERNELS") == "reference":
            rows.append(Status(name, "cuda", "reference", "NANOEMOX_KERNELS=reference"))
        elif not has_triton or find_spec("triton") is None:
            rows.append(Status(name, "cuda", "reference", "Triton is not installed" if has_triton else "no kernel"))
        else:
            rows.append(Status(name, "cuda", "triton", "Triton is installed"))
        rows.append(Status(name, "cpu", "reference", "this version has no CPU kernels"))
    return rows
