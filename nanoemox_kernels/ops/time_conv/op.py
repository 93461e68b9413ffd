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
    from .kernel import time_conv_fwd  # the only import of Triton

    return time_conv_fwd(x, weight, bias, kernel, stride, padding, trim, gelu)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return reference.time_conv(x, weight, bias, *options).contiguous()


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
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: no second kernel
        inputs = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        out = reference.time_conv(inputs[0], inputs[1], inputs[2], *ctx.options)  # type: ignore[arg-type]
        grads = iter(torch.autograd.grad(out, [t for t in inputs if t is not None], grad))
        return (*(None if t is None else next(grads) for t in inputs), *[None] * 5)


_op = register(
    "time_conv(Tensor x, Tensor weight, Tensor? bias, int kernel, int stride, int padding, int trim,"
    " bool gelu) -> Tensor",
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
    """Convolution along time, channels last, followed by bias and erf GELU.

    Args:
        x: [n,T,C*groups], any float dtype, T large enough for one step. The weight determines
            the number of groups.
        weight: [out,kernel*C], one filter per row: the channels of the first tap, then of the second, ...
        bias: [out] or None.
        kernel: taps of a filter.
        stride: of the convolution.
        padding: zeros added at each end.
        trim: steps removed at the end of the result.
        gelu: apply GELU to the result.

    Returns:
        [n,T',out] in the dtype of x, T' = (T + 2 padding - kernel) // stride + 1 - trim.

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 3; docs/ops/time_conv.md.
    """
    if x.ndim != 3 or weight.ndim != 2 or min(kernel, stride, padding + 1, trim + 1) < 1:
        raise ValueError(
            f"want x [n, T, C*groups], weight [out, kernel*C], kernel and stride of at least 1, got "
            f"{list(x.shape)}, {list(weight.shape)}, kernel {kernel}, stride {stride}, padding {padding}, "
            f"trim {trim}"
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
