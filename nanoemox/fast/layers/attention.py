"""Softmax attention, and a way to work on a few items at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoemox_kernels import attn, settings
from nanoemox_kernels.ops.attn.native import attention, serves

from .linear import has_fused_ops

_TEMPORARIES = 10 << 20  # bytes, about the cache of a CPU; other devices take whole batches
_MAX_HEAD_SIZE = 128  # numbers of a head that `attn` keeps on chip


def pieces(x: Tensor, bytes_each: int) -> tuple[Tensor, ...]:
    """Cut x [n,...] along n into equal pieces whose temporaries, `bytes_each` an item, stay in a CPU's cache."""
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
    if bias is None and has_fused_ops(q) and _has_kernel(q, k):
        return attn(q, k, v)
    if serves(q, k, v, bias):
        return attention(q, k, v, bias).transpose(1, 2).flatten(2)
    if bias is not None:
        bias = bias.expand(len(q) // len(bias), *bias.shape).flatten(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def _has_kernel(q: Tensor, k: Tensor) -> bool:
    """Whether `attn` is faster than PyTorch's attention: in 16 bits, up to a number of keys that was measured."""
    keys = settings("attention", q.device)["keys"]
    return k.shape[2] <= keys and q.shape[3] <= _MAX_HEAD_SIZE and q.dtype != torch.float32
