"""Softmax attention, and a way to work on a few items at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import multiplies_packed

_TEMPORARIES = 10 << 20  # bytes; about what a CPU's cache holds. Other devices are filled by whole batches


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
    if q.dtype == torch.bfloat16 and multiplies_packed(q.device, q.dtype):
        return _attend_bf16(q, k, v, bias)
    if bias is not None:
        bias = bias.expand(len(q) // len(bias), *bias.shape).flatten(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def _attend_bf16(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The same through batched products, several times faster on a CPU than PyTorch's attention."""
    n, H, M, d = q.shape
    together = 1 if bias is None else len(bias)
    out = q.new_empty(n, M, H, d)
    each = together * H * M * k.shape[2] * 8  # scores, their remainder, both in fp32
    parts = [pieces(t.unflatten(0, (-1, together)), each) for t in (q, k, v, out.transpose(1, 2))]
    for qs, ks, vs, into in zip(*parts, strict=True):
        into.copy_(_mix(qs, ks, vs, bias).view(into.shape))
    return out.flatten(2)


def _mix(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """q [i,w,H,M,d], k, v [i,w,H,T,d], bias [w,H,M,T] or None -> [i*w*H,M,d].

    A product's result is rounded to bf16, too coarse for a score: a second one gets the remainder.
    """
    q, k, v = (t.flatten(0, 2) for t in (q, k.transpose(3, 4), v))
    rounded = torch.bmm(q, k)
    remainder = torch.baddbmm(rounded, q, k, alpha=-1)
    scores = rounded.float().sub_(remainder).mul_(q.shape[2] ** -0.5)
    if bias is not None:
        scores.view(-1, *bias.shape).add_(bias)
    probabilities = rounded.copy_(torch.softmax(scores, -1, out=scores))
    return torch.bmm(probabilities, v)
