"""Schemas and dispatch of gelu_ and quick_gelu_, which write into their argument: inference only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference


def _cuda(x: Tensor, quick: bool) -> None:
    if x.dtype not in KERNEL_DTYPES:
        return (reference.quick_gelu_ if quick else reference.gelu_)(x)
    from .kernel import activation_inplace  # the only import of Triton

    activation_inplace(x, quick)


def _register(name: str, definition: Callable[[Tensor], None], quick: bool) -> Callable[..., Any]:
    cuda = partial(_cuda, quick=quick)
    return register(f"{name}(Tensor(a!) x) -> ()", reference=definition, fake=lambda x: None, cuda=cuda)


_gelu = _register("gelu_", reference.gelu_, False)
_quick = _register("quick_gelu_", reference.quick_gelu_, True)


def gelu_(x: Tensor) -> Tensor:
    """GELU in its erf form, in place and in one pass.

    Args:
        x: any shape and float dtype; overwritten.

    Returns:
        x. For 16-bit dtypes the error before rounding is at most 4e-6 relative or 4e-10 absolute.

    Raises:
        RuntimeError: x requires grad.

    Source: docs/architecture.md sections 3 and 7; docs/ops/activation.md.
    """
    return _in_place(_gelu, "gelu_", x)


def quick_gelu_(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), CLIP's activation, in place and in one pass.

    Args:
        x: any shape and float dtype; overwritten.

    Returns:
        x, computed in fp32 (fp64 for fp64 input).

    Raises:
        RuntimeError: x requires grad.

    Source: docs/architecture.md section 2; docs/ops/activation.md.
    """
    return _in_place(_quick, "quick_gelu_", x)


def _in_place(op: Callable[..., Any], name: str, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError(f"{name} writes into its argument and has no gradient: inference only")
    op(x)
    return x
