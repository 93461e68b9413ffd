"""Transformer layers that keep nothing of themselves but the taps."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from nanoemox_kernels import Tap, feature_taps_, quick_gelu_

from .attention import attend
from .tensor_store import Linear, TensorStore

Taps = Callable[[int], list[Tap]]  # entry of the hidden states -> what to keep of it


class SelfAttention(nn.Module):
    """Queries, keys and values by one matrix, attention, output projection."""

    def __init__(self, qkv: Linear, out: Linear, heads: int):
        super().__init__()
        self.qkv, self.out, self.heads = qkv, out, heads

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,D] -> [n,T,D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v))


class FirstRowAttention(nn.Module):
    """What row 0 sees: keys and values of all rows, query and output of that one."""

    def __init__(self, query: Linear, key_value: Linear, out: Linear, heads: int):
        super().__init__()
        self.query, self.key_value, self.out, self.heads = query, key_value, out, heads

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,D] -> [n,1,D]."""
        q = self.query(x[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v))


class MLP(nn.Module):
    def __init__(self, up: Linear, down: Linear, *, quick: bool = False, scale: float = 1.0):
        """quick: quick_gelu between the two; scale: of the result."""
        super().__init__()
        self.up, self.down, self.quick, self.scale = up, down, quick, scale

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,D] -> [n,T,D]."""
        hidden = self.up(x)
        out = self.down(quick_gelu_(hidden) if self.quick else hidden)
        return out if self.scale == 1 else out.mul_(self.scale)


class Block(nn.Module):
    """One layer: attention and MLP, a norm before each (pre-norm) or behind each (post-norm)."""

    def __init__(self, norm1: nn.LayerNorm, attention: nn.Module, norm2: nn.LayerNorm, mlp: MLP):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp


def self_attention(weights: TensorStore, heads: int) -> SelfAttention:
    """From q_proj, k_proj, v_proj and out_proj."""
    return SelfAttention(weights.linear("q_proj", "k_proj", "v_proj"), weights.linear("out_proj"), heads)


def first_row_attention(weights: TensorStore, heads: int) -> FirstRowAttention:
    query, key_value = weights.linear("q_proj"), weights.linear("k_proj", "v_proj")
    return FirstRowAttention(query, key_value, weights.linear("out_proj"), heads)


def step(
    hidden: Tensor, update: Tensor | None, norm: nn.LayerNorm | None, taps: Sequence[Tap] = ()
) -> Tensor:
    """hidden += update, in place; returns the norm of it."""
    if norm is None:
        return feature_taps_(hidden, update, taps=taps)
    return feature_taps_(hidden, update, norm.weight, norm.bias, eps=norm.eps, taps=taps)


def run_pre_norm(
    hidden: Tensor, update: Tensor | None, blocks: Sequence[Block], final: nn.LayerNorm | None, taps: Taps
) -> Tensor:
    """hidden [n,T,D], overwritten, plus update is entry 0 of the hidden states -> `final` of the last entry."""
    norms = [*(block.norm1 for block in blocks), final]
    y = step(hidden, update, norms[0], taps(0))
    del update
    for i, block in enumerate(blocks):
        y = block.attention(y)
        y = step(hidden, y, block.norm2)
        y = block.mlp(y)
        y = step(hidden, y, norms[i + 1], taps(i + 1))
    return y


def run_post_norm(
    hidden: Tensor, update: Tensor, blocks: Sequence[Block], first: nn.LayerNorm | None, taps: Taps
) -> None:
    """The same with norms behind the sums:

    entry 0 is `first` of hidden + update, every entry is a norm's output.
    """
    y = step(hidden, update, first, taps(0))
    for i, block in enumerate(blocks):
        y = step(y, block.attention(y), block.norm1)
        y = step(y, block.mlp(y), block.norm2, taps(i + 1))
