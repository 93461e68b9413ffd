"""attn in plain PyTorch: the definition that every other implementation is tested against."""

import torch
from torch import Tensor


def attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v as [n,M,H*d]; scores, softmax and sums in fp32 or wider."""
    acc = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(acc) @ k.to(acc).transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v.to(acc)).transpose(1, 2).flatten(2).to(q.dtype)


def cost(n: int, H: int, M: int, T: int, d: int, *, itemsize: int = 2) -> tuple[int, int]:
    """(bytes moved at least, FLOPs): queries, keys and values read, out written."""
    return itemsize * n * H * d * (2 * M + 2 * T), 4 * n * H * M * T * d
