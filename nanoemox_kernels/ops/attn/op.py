"""Schema, checks and dispatch of attn."""

from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference
from .native import attention, serves

_MAX_HEAD_SIZE = 128  # the largest head that the kernel supports


def _cuda(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if (
        q.shape[3] > _MAX_HEAD_SIZE
        or q.dtype not in KERNEL_DTYPES
        or k.dtype != q.dtype
        or v.dtype != q.dtype
    ):
        return _reference(q, k, v)
    from .kernel import attn_fwd  # the only import of Triton

    return attn_fwd(q, k, v)


def _cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not serves(q, k, v) or not q.numel():
        return _reference(q, k, v)
    return attention(q, k, v).transpose(1, 2).flatten(2)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.attn(q, k, v).contiguous()


def _fake(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: no second kernel
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        return torch.autograd.grad(reference.attn(*inputs), inputs, grad)


_op = register(
    "attn(Tensor q, Tensor k, Tensor v) -> Tensor",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    cpu=_cpu,
    grad=(_setup, _backward),
)


def attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without a mask, for short sequences: softmax(q k^T / sqrt(d)) v.

    On a CPU, `nanoemox_kernels.ops.attn.attention` also takes a bias and a causal offset.

    Args:
        q: [n,H,M,d], any float dtype, any strides.
        k: [n,H,T,d] with T of at least 1, like q.
        v: [n,H,T,d], like q.

    Returns:
        [n,M,H*d] in the dtype of q, the heads of a row next to each other; scores, softmax and sums are fp32
        (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md sections 2 and 3; docs/ops/attn.md.
    """
    if (
        q.ndim != 4
        or k.ndim != 4
        or v.shape != k.shape
        or q.shape[:2] != k.shape[:2]
        or q.shape[3] != k.shape[3]
    ):
        got = f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        raise ValueError(f"want q [n, H, M, d] and k, v [n, H, T, d], got {got}")
    if k.shape[2] < 1 or q.shape[3] < 1:
        raise ValueError(f"want at least one key and a head size of at least 1, got {list(k.shape)}")
    return _op(q, k, v)
