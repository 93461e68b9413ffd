"""window_attn in plain PyTorch: the definition that every other implementation is tested against."""

import torch
from torch import Tensor

_SEPARATE = -100.0  # Swin adds it to the scores of positions that only the shift brings together


def window_attn(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, height: int, width: int, window: int, shift: int
) -> Tensor:
    """Pad, roll, split into windows, attend in fp32 or wider with bias and shift mask, and reassemble."""
    n, heads, N = len(qkv), len(bias), window**2
    acc = torch.promote_types(qkv.dtype, torch.float32)
    size = height + -height % window, width + -width % window
    grid = qkv.new_zeros((), dtype=acc).expand(n, *size, qkv.shape[2]).clone()
    if padding is not None:
        grid += padding.to(acc)
    grid[:, :height, :width] = qkv.to(acc).unflatten(1, (height, width))
    windows = _cut(grid.roll((-shift, -shift), (1, 2)), window)  # [n,w,N,3C]
    q, k, v = windows.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias[:, :N, :N].to(acc)
    if shift:
        regions = [
            (place >= side - window).long() + (place >= side - shift).long()
            for side, place in _places(size, q)
        ]
        region = _cut((regions[0][:, None] * 3 + regions[1])[None, ..., None], window)[0, :, :, 0]  # [w,N]
        scores = scores + ((region[:, None] != region[:, :, None]) * _SEPARATE)[:, None]
    mixed = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)  # [n,w,N,C]
    rows, columns = size[0] // window, size[1] // window
    back = mixed.unflatten(2, (window, window)).unflatten(1, (rows, columns)).transpose(2, 3)
    whole = back.flatten(3, 4).flatten(1, 2).roll((shift, shift), (1, 2))
    return whole[:, :height, :width].flatten(1, 2).to(qkv.dtype)


def _places(size: tuple[int, int], like: Tensor) -> list[tuple[int, Tensor]]:
    return [(side, torch.arange(side, device=like.device)) for side in size]


def _cut(grid: Tensor, window: int) -> Tensor:
    """[n,H,W,K] -> [n,windows,window**2,K]."""
    return (
        grid.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    )


def cost(
    n: int, height: int, width: int, C: int, heads: int, window: int, *, itemsize: int = 2
) -> tuple[int, int]:
    """(bytes moved at least, FLOPs): qkv and bias read, out written."""
    windows = -(-height // window) * -(-width // window)
    return itemsize * (4 * n * height * width * C + heads * window**4), 4 * n * windows * window**4 * C
