"""Softmax attention, and the division of a batch into chunks that fit a CPU's cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoemox_kernels import attn, settings
from nanoemox_kernels.ops.attn.native import attention, serves

from .linear import has_fused_ops

_CACHE_BYTES = 10 << 20  # roughly the last-level cache of a CPU
_MAX_HEAD_SIZE = 128  # channels of a head that `attn` keeps on chip


def cache_chunks(x: Tensor, bytes_per_item: int) -> tuple[Tensor, ...]:
    """Split a batch so that the temporaries of a chunk stay in a CPU's cache.

    Args:
        x: [n,...].
        bytes_per_item: size of the largest temporary of one item.

    Returns:
        Views of x along n, all of one size but the last; x as a whole on other devices.
    """
    if x.device.type != "cpu":
        return (x,)
    count = -(-len(x) * bytes_per_item // _CACHE_BYTES)
    return x.chunk(max(count, 1))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, on the implementation that is fastest for these tensors.

    Args:
        q: [n,H,M,d], any strides.
        k, v: [n,H,T,d], any strides, in the dtype of q.
        bias: [w,H,M,T] or None; n is a multiple of w, and item i of the batch uses bias i % w.

    Returns:
        [n,M,H*d] in the dtype of q.
    """
    if bias is None and has_fused_ops(q) and _has_kernel(q, k):
        return attn(q, k, v)
    if serves(q, k, v, bias):
        mixed = attention(q, k, v, bias)
    else:
        if bias is not None:
            repeats = len(q) // len(bias)
            bias = bias.expand(repeats, *bias.shape).flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)


def _has_kernel(q: Tensor, k: Tensor) -> bool:
    """Whether `attn` is faster than PyTorch's attention: in 16 bits, up to a measured number of keys."""
    max_keys = settings("attention", q.device)["keys"]
    return k.shape[2] <= max_keys and q.shape[3] <= _MAX_HEAD_SIZE and q.dtype != torch.float32
