"""The Q-Former of a branch. What depends on its learned queries alone is computed at load.

Source: docs/architecture.md sections 4, 5, 6 and 22.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import QFormerConfig
from .layers.attention import attend
from .layers.tensor_store import TensorStore
from .layers.transformer import MLP, SelfAttention, add_norm

_KEY_VALUE = ("key", "value")
_NAMES = {  # stem -> position table, projection
    "video": ("video_frame_position_embedding", "video_proj"),
    "audio": ("audio_position_embedding", "audio_llama_proj"),
}


class FastQFormerBranch(nn.Module):
    """QFormerBranch on the official tensors of "video" or "audio". None of its layers is int8.

    A Q-Former layer is split where the context enters: the first half of the first layer has a constant
    result, and the keys and values of all layers are one product.
    """

    first_halves: Sequence["_FirstHalf"]  # of all layers but the first
    second_halves: Sequence["_SecondHalf"]
    hidden: Tensor  # result of the first layer's first half: [1,queries,D] each
    query: Tensor

    def __init__(self, config: QFormerConfig, weights: TensorStore, stem: str):
        """
        Args:
            config: sizes of the Q-Former.
            weights: all official tensors.
            stem: "video" or "audio".
        """
        super().__init__()
        weights = weights.floating()
        self.heads = config.heads
        position, proj = _NAMES[stem]
        bert = weights.under(f"{stem}_Qformer.bert.")
        layers = [bert.under(f"encoder.layer.{number}.") for number in range(config.layers)]
        first_half, *others = [_FirstHalf(config, layer) for layer in layers]
        self.first_halves = nn.ModuleList(others)  # type: ignore[assignment]
        second_halves = [_SecondHalf(config, layer) for layer in layers]
        self.second_halves = nn.ModuleList(second_halves)  # type: ignore[assignment]
        key_value = [
            f"encoder.layer.{number}.crossattention.self.{name}"
            for number in range(len(layers))
            for name in _KEY_VALUE
        ]
        self.key_value = bert.linear(*key_value)
        self.position = nn.Parameter(weights.take(f"{position}.weight"), requires_grad=False)
        self.proj = weights.linear(proj)
        query_tokens = weights.take(f"{stem}_query_tokens")
        norm = bert.norm("embeddings.LayerNorm", config.layer_norm_eps).float()
        hidden, query = first_half.float()(norm(query_tokens.float()))
        self.register_buffer("hidden", hidden.to(query_tokens.dtype))
        self.register_buffer("query", query.to(query_tokens.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """features [B,T,F], T at most the position table -> [B,tokens,width]."""
        B, steps = features.shape[:2]
        limit = len(self.position)
        if steps > limit:
            raise ValueError(f"{steps} time steps, but the position table holds {limit}")
        context = self.key_value(features + self.position[:steps])
        by_layer = context.unflatten(-1, (len(self.second_halves), 2, self.heads, -1))  # [B,T,layers,2,H,d]
        keys, values = by_layer.permute(3, 2, 0, 4, 1, 5)
        hidden, query = self.hidden.expand(B, -1, -1), self.query.expand(B, -1, -1)
        for number, second_half in enumerate(self.second_halves):
            if number > 0:
                hidden, query = self.first_halves[number - 1](hidden)
            hidden = second_half(hidden, query, keys[number], values[number])
        return self.proj(hidden)


class _FirstHalf(nn.Module):
    """A layer up to the context: self-attention, norm, queries of the cross-attention."""

    def __init__(self, config: QFormerConfig, weights: TensorStore):
        super().__init__()
        qkv = weights.linear(*(f"attention.self.{name}" for name in ("query", *_KEY_VALUE)))
        self.attention = SelfAttention(qkv, weights.linear("attention.output.dense"), config.heads)
        self.norm = weights.norm("attention.output.LayerNorm", config.layer_norm_eps)
        self.query = weights.linear("crossattention.self.query")

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B,M,D] -> normalised hidden and query, both [B,M,D]."""
        hidden = add_norm(self.attention(hidden), hidden, self.norm)
        return hidden, self.query(hidden)


class _SecondHalf(nn.Module):
    """The remainder of a layer: cross-attention, norm, MLP, norm."""

    def __init__(self, config: QFormerConfig, weights: TensorStore):
        super().__init__()
        self.heads, self.out = config.heads, weights.linear("crossattention.output.dense")
        self.norm1 = weights.norm("crossattention.output.LayerNorm", config.layer_norm_eps)
        up = weights.linear("intermediate_query.dense", activation="gelu")
        self.mlp = MLP(up, weights.linear("output_query.dense"))
        self.norm2 = weights.norm("output_query.LayerNorm", config.layer_norm_eps)

    def forward(self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """hidden, query [B,M,D], key, value [B,H,T,d] -> [B,M,D]. The arguments stay as they are."""
        heads = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = attend(heads, key, value)
        hidden = add_norm(self.out(mixed), hidden, self.norm1)
        return add_norm(self.mlp(hidden), hidden, self.norm2)
