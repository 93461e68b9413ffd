"""Transformer layers over one residual stream, of which only the taps are kept."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from nanoemox_kernels import Tap, feature_taps_, quick_gelu_

from .attention import attend
from .tensor_store import Linear, TensorStore

Taps = Callable[[int], list[Tap]]  # number of a hidden state -> what to add up of it


class SelfAttention(nn.Module):
    """Self-attention whose queries, keys and values come from one product."""

    def __init__(self, qkv: Linear, out: Linear, heads: int):
        super().__init__()
        self.qkv, self.out, self.heads = qkv, out, heads

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,D] -> [n,T,D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v))


class FirstRowAttention(nn.Module):
    """Self-attention of row 0 alone: keys and values of all rows, query and output of the first."""

    def __init__(self, query: Linear, key_value: Linear, out: Linear, heads: int):
        super().__init__()
        self.query, self.key_value, self.out, self.heads = query, key_value, out, heads

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,D] -> [n,1,D]."""
        q = self.query(x[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v))


class MLP(nn.Module):
    """scale * down(activation(up(x))); the activation is that of `up`, or quick GELU."""

    def __init__(self, up: Linear, down: Linear, *, quick_gelu: bool = False, scale: float = 1.0):
        """
        Args:
            up: [mlp,D], with its activation.
            down: [D,mlp].
            quick_gelu: apply x sigmoid(1.702 x) between the two.
            scale: factor of the result.
        """
        super().__init__()
        self.up, self.down, self.quick_gelu, self.scale = up, down, quick_gelu, scale

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,D] -> [n,T,D]."""
        hidden = self.up(x)
        if self.quick_gelu:
            hidden = quick_gelu_(hidden)
        out = self.down(hidden)
        return out if self.scale == 1 else out.mul_(self.scale)


class Block(nn.Module):
    """One layer: attention and MLP, with a norm before each (pre-norm) or behind each (post-norm).

    It holds the four parts; `run_pre_norm` and `run_post_norm` connect them.
    """

    def __init__(self, norm1: nn.LayerNorm, attention: nn.Module, norm2: nn.LayerNorm, mlp: MLP):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp


def self_attention(weights: TensorStore, heads: int) -> SelfAttention:
    """Self-attention on the tensors q_proj, k_proj, v_proj and out_proj."""
    qkv = weights.linear("q_proj", "k_proj", "v_proj")
    return SelfAttention(qkv, weights.linear("out_proj"), heads)


def first_row_attention(weights: TensorStore, heads: int) -> FirstRowAttention:
    """First-row attention on the tensors q_proj, k_proj, v_proj and out_proj."""
    query, key_value = weights.linear("q_proj"), weights.linear("k_proj", "v_proj")
    return FirstRowAttention(query, key_value, weights.linear("out_proj"), heads)


def add_norm(
    hidden: Tensor, update: Tensor | None, norm: nn.LayerNorm | None, taps: Sequence[Tap] = ()
) -> Tensor:
    """Add an update to the residual stream and return the norm of the sum; taps are added up on the way.

    Args:
        hidden: [n,T,D], overwritten with hidden + update.
        update: [n,T,D] or None.
        norm: of the sum; None returns the sum itself.
        taps: what is added to which buffers.

    Returns:
        [n,T,D] in the dtype of hidden.
    """
    if norm is None:
        return feature_taps_(hidden, update, taps=taps)
    return feature_taps_(hidden, update, norm.weight, norm.bias, eps=norm.eps, taps=taps)


def run_pre_norm(
    hidden: Tensor, update: Tensor | None, blocks: Sequence[Block], final: nn.LayerNorm | None, taps: Taps
) -> Tensor:
    """Run blocks with a norm before attention and MLP.

    Args:
        hidden: [n,T,D], overwritten. Hidden state 0 is hidden + update.
        update: [n,T,D] or None.
        blocks: the layers.
        final: norm of the last hidden state, or None.
        taps: called with the number of every hidden state.

    Returns:
        `final` of the last hidden state [n,T,D].
    """
    norms = [*(block.norm1 for block in blocks), final]
    y = add_norm(hidden, update, norms[0], taps(0))
    del update  # frees its memory if the caller keeps no reference
    for number, block in enumerate(blocks, start=1):
        y = block.attention(y)
        y = add_norm(hidden, y, block.norm2)
        y = block.mlp(y)
        y = add_norm(hidden, y, norms[number], taps(number))
    return y


def run_post_norm(
    hidden: Tensor, update: Tensor, blocks: Sequence[Block], first: nn.LayerNorm | None, taps: Taps
) -> None:
    """Run blocks with a norm behind attention and MLP; every hidden state is the output of a norm.

    Args:
        hidden: [n,T,D], overwritten. Hidden state 0 is `first` of hidden + update.
        update: [n,T,D].
        blocks: the layers.
        first: norm of the input.
        taps: called with the number of every hidden state.
    """
    y = add_norm(hidden, update, first, taps(0))
    for number, block in enumerate(blocks, start=1):
        y = add_norm(y, block.attention(y), block.norm1)
        y = add_norm(y, block.mlp(y), block.norm2, taps(number))
