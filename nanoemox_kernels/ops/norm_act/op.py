"""Schemas, checks and dispatch of norm_act and conv_norm_act."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference

# Limits of the kernels: numbers of a row; filters; taps of a filter.
_MAX_WIDTH, _MAX_FILTERS, _MAX_TAPS = 4096, 1024, 64


def _norm_cuda(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    if x.shape[-1] > _MAX_WIDTH or any(t.dtype not in KERNEL_DTYPES for t in (x, weight, bias)):
        return _norm_reference(x, weight, bias, eps, gelu)
    from .kernel import norm_act_fwd  # the only import of Triton

    return norm_act_fwd(x, weight, bias, eps, gelu)


def _conv_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    stride: int, eps: float, gelu: bool,
) -> Tensor:  # fmt: skip
    tensors = [t for t in (x, bias, norm_weight, norm_bias) if t is not None]
    large = weight.shape[0] > _MAX_FILTERS or weight.shape[1] > _MAX_TAPS
    if large or weight.dtype != x.dtype or any(t.dtype not in KERNEL_DTYPES for t in tensors):
        return _conv_reference(x, weight, bias, norm_weight, norm_bias, stride, eps, gelu)
    from .kernel import conv_norm_act_fwd

    return conv_norm_act_fwd(x, weight, bias, norm_weight, norm_bias, stride, eps, gelu)


def _norm_reference(x: Tensor, *options: Any) -> Tensor:
    return reference.norm_act(x, *options).contiguous()


def _conv_reference(x: Tensor, *options: Any) -> Tensor:
    return reference.conv_norm_act(x, *options).contiguous()


def _conv_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    stride: int, eps: float, gelu: bool,
) -> Tensor:  # fmt: skip
    steps = reference.steps(x.shape[1], weight.shape[1], stride)
    return x.new_empty(x.shape[0], steps, weight.shape[0])


def _grad(definition: Callable[..., Tensor], tensors: int) -> tuple:
    """(setup_context, backward) of an op whose first arguments are `tensors` tensors."""

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def backward(ctx: Any, grad: Tensor) -> tuple:
        with torch.enable_grad():  # training is rare: no second kernel
            inputs = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
            out = definition(*inputs, *ctx.options)
            grads = iter(torch.autograd.grad(out, [t for t in inputs if t is not None], grad))
            return (*(None if t is None else next(grads) for t in inputs), *[None] * len(ctx.options))

    return setup, backward


_norm = register(
    "norm_act(Tensor x, Tensor weight, Tensor bias, float eps, bool gelu) -> Tensor",
    reference=_norm_reference,
    fake=lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    cuda=_norm_cuda,
    grad=_grad(reference.norm_act, 3),
)
_conv = register(
    "conv_norm_act(Tensor x, Tensor weight, Tensor? bias, Tensor norm_weight, Tensor norm_bias, int stride,"
    " float eps, bool gelu) -> Tensor",
    reference=_conv_reference,
    fake=_conv_fake,
    cuda=_conv_cuda,
    grad=_grad(reference.conv_norm_act, 5),
)


def norm_act(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, gelu: bool = False) -> Tensor:
    """LayerNorm over the last axis, followed by an erf GELU or nothing, in one pass.

    Args:
        x: [...,D], any float dtype.
        weight: [D], gain.
        bias: [D].
        eps: added to the variance.
        gelu: apply GELU to the result.

    Returns:
        [...,D] in the dtype of x; statistics in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 3; docs/ops/norm_act.md.
    """
    if x.ndim < 1 or any(tuple(t.shape) != (x.shape[-1],) for t in (weight, bias)):
        got = f"{list(x.shape)}, {list(weight.shape)}, {list(bias.shape)}"
        raise ValueError(f"want x [..., D], weight and bias [D], got {got}")
    return _norm(x, weight, bias, eps, gelu)


def conv_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    stride: int = 1,
    eps: float = 1e-5,
    gelu: bool = False,
) -> Tensor:
    """Convolution of a signal of one channel, LayerNorm over the filters, erf GELU: HuBERT's first layer.

    Args:
        x: [n,S], any float dtype.
        weight: [D,kernel], a filter a row; kernel at most S.
        bias: [D] or None.
        norm_weight: [D], gain of the LayerNorm.
        norm_bias: [D].
        stride: of the convolution.
        eps: added to the variance.
        gelu: apply GELU to the result.

    Returns:
        [n,T,D] in the dtype of x, T = (S - kernel) // stride + 1; sums in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 3; docs/ops/norm_act.md.
    """
    if x.ndim != 2 or weight.ndim != 2 or stride < 1 or not 1 <= weight.shape[1] <= x.shape[1]:
        raise ValueError(
            f"want x [n, S], weight [D, kernel] with a kernel of at most S and a stride of at least 1, got "
            f"{list(x.shape)}, {list(weight.shape)}, stride {stride}"
        )
    for name, tensor in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if tensor is not None and tuple(tensor.shape) != (weight.shape[0],):
            raise ValueError(f"want {name} [{weight.shape[0]}], got {list(tensor.shape)}")
    return _conv(x, weight, bias, norm_weight, norm_bias, stride, eps, gelu)
