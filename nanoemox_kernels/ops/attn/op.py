"""Schema, checks and dispatch of attn."""

from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference

_MOST_NUMBERS = 128  # of a head, that the kernel holds on chip


def _cuda(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.shape[3] > _MOST_NUMBERS or q.dtype not in KERNEL_DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        return _reference(q, k, v)
    from .kernel import attn_fwd  # Triton comes in here and nowhere else

    return attn_fwd(q, k, v)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.attn(q, k, v).contiguous()


def _fake(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: differentiate the definition, keep no second kernel
        given = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        return torch.autograd.grad(reference.attn(*given), given, grad)


_op = register(
    "attn(Tensor q, Tensor k, Tensor v) -> Tensor",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    grad=(_setup, _backward),
)


def attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of short sequences that see all of each other (architecture sections 2 and 3).

    Args:
        q: [n,H,M,d]; k, v: [n,H,T,d], T at least 1; any float dtype, any strides.

    Returns:
        [n,M,H*d] in the dtype of q, heads side by side.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if (
        q.ndim != 4
        or k.ndim != 4
        or v.shape != k.shape
        or q.shape[:2] != k.shape[:2]
        or q.shape[3] != k.shape[3]
    ):
        raise ValueError(
            f"want q [n, H, M, d] and k, v [n, H, T, d], got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if k.shape[2] < 1 or q.shape[3] < 1:
        raise ValueError(f"want at least one key of one number, got {list(k.shape)}")
    return _op(q, k, v)
