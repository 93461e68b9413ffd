"""Schema and dispatch of quick_gelu_. It writes into its argument: inference only."""

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference


def _cuda(x: Tensor) -> None:
    if x.dtype not in KERNEL_DTYPES:
        return reference.quick_gelu_(x)
    from .kernel import quick_gelu_inplace  # Triton comes in here and nowhere else

    quick_gelu_inplace(x)


_op = register("quick_gelu_(Tensor(a!) x) -> ()", reference=reference.quick_gelu_, fake=lambda x: None, cuda=_cuda)


def quick_gelu_(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), CLIP's activation, in place and in one pass (architecture section 2).

    Args:
        x: any shape and float dtype, overwritten and returned.

    Raises:
        RuntimeError: an input that requires grad.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError("quick_gelu_ writes into its argument and has no gradient: inference only")
    _op(x)
    return x
