"""Softmax attention, and a way to work on a few items at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoemox_kernels import attn
from nanoemox_kernels.ops.attn.native import attention, serves

from .linear import has_fused_ops

_TEMPORARIES = 10 << 20  # bytes; about what a CPU's cache holds. Other devices are filled by whole batches
_SHORT = (
    512  # keys up to which `attn` beats PyTorch's on a GPU in 16 bits: it does with 99 and 257, not with 577
)
_HEAD = 128  # numbers of a head that it holds on chip


def pieces(x: Tensor, bytes_each: int) -> tuple[Tensor, ...]:
    """x [n,...] cut along n into equal pieces, so that temporaries of `bytes_each` an item stay small on a CPU."""
    count = -(-len(x) * bytes_each // _TEMPORARIES) if x.device.type == "cpu" else 1
    return x.chunk(max(count, 1))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: [n,H,M,d]; k, v: [n,H,T,d]; any strides.
        bias: [w,H,M,T] or None, n a multiple of w: item i of the batch has bias i % w.

    Returns:
        [n,M,H*d].
    """
    short = k.shape[2] <= _SHORT and q.shape[3] <= _HEAD and q.dtype != torch.float32
    if bias is None and short and has_fused_ops(q):
        return attn(q, k, v)
    if serves(q, k, v, bias):
        return attention(q, k, v, bias).transpose(1, 2).flatten(2)
    if bias is not None:
        bias = bias.expand(len(q) // len(bias), *bias.shape).flatten(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
