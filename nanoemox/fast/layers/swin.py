"""Swin's stages, biases expanded at load:

on index maps, windows gathered and put back by row, or on a fused op.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import window_attn

from ...config import FaceConfig
from .attention import attend
from .linear import has_fused_ops, normed
from .tensor_store import Linear, TensorStore
from .transformer import MLP, Block, step
from .windows import relative_positions, shift_mask, window_maps


class Stage(nn.Module):
    """Blocks whose windows are shifted every other time; `merge` leads to the next stage."""

    blocks: Sequence[Block]

    def __init__(self, config: FaceConfig, weights: TensorStore, stage: int):
        """weights: under the backbone, `1.` to `7.` in turn stages and merges."""
        super().__init__()
        self.width = config.embed_dim * 2**stage
        blocks = [
            _block(
                config,
                weights.under(f"{2 * stage + 1}.{i}."),
                config.heads[stage],
                i % 2 * config.window_size // 2,
            )
            for i in range(config.depths[stage])
        ]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        last = stage == len(config.depths) - 1
        self.merge = None if last else Merge(weights.under(f"{2 * stage + 2}."))

    def forward(self, hidden: Tensor, height: int, width: int) -> Tensor:
        """hidden [n,h*w,C], overwritten with the stage's output and returned."""
        y = step(hidden, None, self.blocks[0].norm1)
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            y = block.attention(y, height, width)
            y = step(hidden, y, block.norm2)
            y = block.mlp(y)
            if following is not None:
                y = step(hidden, y, following.norm1)
        return hidden.add_(y)


class Merge(nn.Module):
    """Four neighbours side by side, their norm, and half as many channels."""

    def __init__(self, weights: TensorStore):
        super().__init__()
        self.norm = weights.norm("norm")
        self.reduction = weights.linear("reduction")

    def forward(self, hidden: Tensor, height: int, width: int) -> Tensor:
        """hidden [n,h*w,C] -> [n,ceil(h/2)*ceil(w/2),2C]; odd sides are padded with zeros."""
        grid = hidden.unflatten(1, (height, width))
        if height % 2 or width % 2:
            grid = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
        fours = (
            grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        )  # column first, then row
        return self.reduction(normed(fours.flatten(3).flatten(1, 2), self.norm))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for every pair of positions of a window."""

    bias: Tensor

    def __init__(self, qkv: Linear, out: Linear, table: Tensor, heads: int, window: int, shift: int):
        super().__init__()
        self.qkv, self.out, self.heads, self.window, self.shift = qkv, out, heads, window, shift
        pairs = table[relative_positions(window).to(table.device)]
        self.register_buffer("bias", pairs.view(1, window**2, window**2, heads).movedim(-1, 1).contiguous())
        self._masked: tuple[tuple, Tensor] | None = None
        self._tile: Tensor | None = None

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x [n,h*w,C] -> [n,h*w,C]."""
        if min(height, width) < self.window:
            raise ValueError(f"frames too small: a map of {height}x{width} holds no window of {self.window}")
        shift = self.shift if min(height, width) > self.window else 0
        if has_fused_ops(x):
            qkv, padding = self.qkv(x), self.qkv.bias
            return self.out(
                window_attn(
                    qkv, self._tiled_bias(), height, width, window=self.window, shift=shift, padding=padding
                )
            )
        index, inverse = window_maps(height, width, self.window, shift, x.device)
        rows = F.pad(x, (0, 0, 0, 1)) if len(index) > len(inverse) else x
        windows = rows.index_select(1, index).view(-1, self.window**2, x.shape[2])
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._masked_bias(height, width) if shift else self.bias
        return self.out(attend(q, k, v, bias)).view(len(x), len(index), -1).index_select(1, inverse)

    def _tiled_bias(self) -> Tensor:
        """[heads,N,N], N a power of two from the window's positions on:

        what the fused op reads in wide loads.
        """
        bias, kept = self.bias[0], self._tile
        if kept is None or (kept.device, kept.dtype) != (bias.device, bias.dtype):
            more = (1 << (self.window**2 - 1).bit_length()) - self.window**2
            self._tile = kept = F.pad(bias, (0, more, 0, more))
        return kept

    def _masked_bias(self, height: int, width: int) -> Tensor:
        """[windows,heads,window**2,window**2]; kept for the next call, frames rarely change their size."""
        key, kept = (height, width, self.bias.device, self.bias.dtype), self._masked
        if kept is None or kept[0] != key:
            mask = shift_mask(height, width, self.window, self.shift).to(self.bias)
            self._masked = kept = key, self.bias + mask
        return kept[1]


def _block(config: FaceConfig, weights: TensorStore, heads: int, shift: int) -> Block:
    norm1, norm2 = (weights.norm(f"norm{i}", config.layer_norm_eps) for i in (1, 2))
    table = weights.take("attn.relative_position_bias_table")
    qkv, out = weights.linear("attn.qkv"), weights.linear("attn.proj")
    attention = WindowAttention(qkv, out, table, heads, config.window_size, shift)
    return Block(
        norm1, attention, norm2, MLP(weights.linear("mlp.0", activation="gelu"), weights.linear("mlp.3"))
    )
