"""Schema, checks and dispatch of time_conv."""

from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference


def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    trim: int,
    gelu: bool,
) -> Tensor:
    if (
        x.dtype not in KERNEL_DTYPES
        or weight.dtype != x.dtype
        or (bias is not None and bias.dtype != x.dtype)
    ):
        return _reference(x, weight, bias, kernel, stride, padding, trim, gelu)
    from .kernel import time_conv_fwd  # Triton comes in here and nowhere else

    return time_conv_fwd(x, weight, bias, kernel, stride, padding, trim, gelu)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return reference.time_conv(x, weight, bias, *rest).contiguous()


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    trim: int,
    gelu: bool,
) -> Tensor:
    return x.new_empty(
        x.shape[0], reference.steps(x.shape[1], kernel, stride, padding, trim), weight.shape[0]
    )


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: differentiate the definition, keep no second kernel
        given = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        out = reference.time_conv(given[0], given[1], given[2], *ctx.rest)  # type: ignore[arg-type]
        found = iter(torch.autograd.grad(out, [t for t in given if t is not None], grad))
        return (*(None if t is None else next(found) for t in given), *[None] * 5)


_op = register(
    "time_conv(Tensor x, Tensor weight, Tensor? bias, int kernel, int stride, int padding, int trim, bool gelu)"
    " -> Tensor",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    grad=(_setup, _backward),
)


def time_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    trim: int = 0,
    gelu: bool = False,
) -> Tensor:
    """Convolution along time, channels last, with bias and erf GELU behind it (architecture section 3).

    Args:
        x: [n,T,C*groups], any float dtype, T such that one step is left at least; groups follow from the weight.
        weight: [out,kernel*C], a filter a row: the channels of the first tap, of the second, and so on.
        bias: [out] or None.
        padding: zeros at both ends; trim: steps at the end that are not wanted.

    Returns:
        [n,T',out] in the dtype of x, T' = (T + 2 padding - kernel) // stride + 1 - trim.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if x.ndim != 3 or weight.ndim != 2 or min(kernel, stride, padding + 1, trim + 1) < 1:
        raise ValueError(
            f"want x [n, T, C*groups], weight [out, kernel*C], kernel and stride of at least 1, got {list(x.shape)}, "
            f"{list(weight.shape)}, kernel {kernel}, stride {stride}, padding {padding}, trim {trim}"
        )
    C, odd = weight.shape[1] // kernel, weight.shape[1] % kernel  # no divmod: torch.compile cannot trace it
    if odd or C < 1 or x.shape[2] % C or weight.shape[0] % (x.shape[2] // C):
        raise ValueError(
            f"weight {list(weight.shape)} with kernel {kernel} has no groups for x {list(x.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"want bias [{weight.shape[0]}], got {list(bias.shape)}")
    if reference.steps(x.shape[1], kernel, stride, padding, trim) < 1:
        raise ValueError(f"{x.shape[1]} steps are too few for a kernel of {kernel} with padding {padding}")
    return _op(x, weight, bias, kernel, stride, padding, trim, gelu)
