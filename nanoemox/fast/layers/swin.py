"""Swin's stages: windows are gathered by index maps, or read in place by a fused op.

Bias tables are expanded at load. Source: docs/architecture.md sections 8 and 16.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import window_attn

from ...config import FaceConfig
from .attention import attend
from .linear import has_fused_ops, layer_norm
from .tensor_store import Linear, TensorStore
from .transformer import MLP, Block, add_norm
from .windows import relative_positions, shift_mask, window_maps


class Stage(nn.Module):
    """A stage of blocks, of which every second one shifts its windows; `merge` leads to the next stage."""

    blocks: Sequence[Block]

    def __init__(self, config: FaceConfig, weights: TensorStore, stage: int):
        """
        Args:
            config: sizes of the backbone.
            weights: tensors of the backbone; `1.` to `7.` are stages and merges in turn.
            stage: number of the stage, from 0.
        """
        super().__init__()
        self.width = config.embed_dim * 2**stage
        blocks = []
        for number in range(config.depths[stage]):
            shift = config.window_size // 2 if number % 2 else 0
            block_weights = weights.under(f"{2 * stage + 1}.{number}.")
            blocks.append(_block(config, block_weights, config.heads[stage], shift))
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        is_last = stage == len(config.depths) - 1
        self.merge = None if is_last else PatchMerging(weights.under(f"{2 * stage + 2}."))

    def forward(self, hidden: Tensor, height: int, width: int) -> Tensor:
        """hidden [n,h*w,C], overwritten with the stage's output and returned."""
        y = add_norm(hidden, None, self.blocks[0].norm1)
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            y = block.attention(y, height, width)
            y = add_norm(hidden, y, block.norm2)
            y = block.mlp(y)
            if following is not None:
                y = add_norm(hidden, y, following.norm1)
        return hidden.add_(y)


class PatchMerging(nn.Module):
    """Concatenates the channels of 2 x 2 neighbours, normalises them and halves their number."""

    def __init__(self, weights: TensorStore):
        super().__init__()
        self.norm = weights.norm("norm")
        self.reduction = weights.linear("reduction")

    def forward(self, hidden: Tensor, height: int, width: int) -> Tensor:
        """hidden [n,h*w,C] -> [n,ceil(h/2)*ceil(w/2),2C]; odd sides are padded with zeros."""
        grid = hidden.unflatten(1, (height, width))
        if height % 2 or width % 2:
            grid = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
        cells = grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [n,h/2,2,w/2,2,C]
        neighbours = cells.permute(0, 1, 3, 4, 2, 5)  # Swin's order of the four: column first, then row
        return self.reduction(layer_norm(neighbours.flatten(3).flatten(1, 2), self.norm))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for every pair of positions of a window."""

    bias: Tensor

    def __init__(self, qkv: Linear, out: Linear, table: Tensor, heads: int, window: int, shift: int):
        """
        Args:
            qkv: queries, keys and values in one layer.
            out: the output projection.
            table: bias by relative position [(2*window-1)**2,heads].
            heads: number of heads.
            window: side of a window.
            shift: by which windows are shifted, 0 for none.
        """
        super().__init__()
        self.qkv, self.out, self.heads, self.window, self.shift = qkv, out, heads, window, shift
        positions = window**2
        pairs = table[relative_positions(window).to(table.device)].view(1, positions, positions, heads)
        self.register_buffer("bias", pairs.movedim(-1, 1).contiguous())
        self._masked: tuple[tuple[int, int, torch.device, torch.dtype], Tensor] | None = None
        self._padded: Tensor | None = None

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x [n,h*w,C] -> [n,h*w,C]. Raises ValueError for a map that is smaller than a window."""
        if min(height, width) < self.window:
            raise ValueError(f"frames too small: a map of {height}x{width} holds no window of {self.window}")
        shift = self.shift if min(height, width) > self.window else 0
        if has_fused_ops(x):
            mixed = window_attn(
                self.qkv(x),
                self._padded_bias(),
                height,
                width,
                window=self.window,
                shift=shift,
                padding=self.qkv.bias,
            )
            return self.out(mixed)
        index, inverse = window_maps(height, width, self.window, shift, x.device)
        rows = F.pad(x, (0, 0, 0, 1)) if len(index) > len(inverse) else x
        windows = rows.index_select(1, index).view(-1, self.window**2, x.shape[2])
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._masked_bias(height, width) if shift else self.bias
        out = self.out(attend(q, k, v, bias))
        return out.view(len(x), len(index), -1).index_select(1, inverse)

    def _padded_bias(self) -> Tensor:
        """The bias [heads,N,N] with rows of a power of two, which the fused op reads in wide loads."""
        bias, padded = self.bias[0], self._padded
        if padded is None or (padded.device, padded.dtype) != (bias.device, bias.dtype):
            positions = self.window**2
            size = 1 << (positions - 1).bit_length()
            padded = F.pad(bias, (0, size - positions, 0, size - positions))
            self._padded = padded
        return padded

    def _masked_bias(self, height: int, width: int) -> Tensor:
        """Bias and shift mask [windows,heads,window**2,window**2], kept for maps of the same size."""
        key = (height, width, self.bias.device, self.bias.dtype)
        masked = self._masked  # one read: another thread may replace it
        if masked is None or masked[0] != key:
            mask = shift_mask(height, width, self.window, self.shift).to(self.bias)
            masked = key, self.bias + mask
            self._masked = masked
        return masked[1]


def _block(config: FaceConfig, weights: TensorStore, heads: int, shift: int) -> Block:
    norm1, norm2 = (weights.norm(f"norm{number}", config.layer_norm_eps) for number in (1, 2))
    table = weights.take("attn.relative_position_bias_table")
    qkv, out = weights.linear("attn.qkv"), weights.linear("attn.proj")
    attention = WindowAttention(qkv, out, table, heads, config.window_size, shift)
    mlp = MLP(weights.linear("mlp.0", activation="gelu"), weights.linear("mlp.3"))
    return Block(norm1, attention, norm2, mlp)
