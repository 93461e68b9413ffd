"""The Q-Former of a branch.

What its learned queries go through before they meet the context is worked out at load.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import QFormerConfig
from .layers.attention import attend
from .layers.tensor_store import TensorStore
from .layers.transformer import MLP, SelfAttention, step

_KEY_VALUE = ("key", "value")
_NAMES = {  # stem -> position table, projection
    "video": ("video_frame_position_embedding", "video_proj"),
    "audio": ("audio_position_embedding", "audio_llama_proj"),
}


class FastQFormerBranch(nn.Module):
    """QFormerBranch on the official tensors of "video" or "audio". None of its layers is int8."""

    asks: Sequence["_Ask"]  # of all layers but the first
    reads: Sequence["_Read"]
    hidden: Tensor
    query: Tensor

    def __init__(self, config: QFormerConfig, weights: TensorStore, stem: str):
        super().__init__()
        weights = weights.floating()
        bert, (position, proj) = weights.under(f"{stem}_Qformer.bert."), _NAMES[stem]
        self.heads = config.heads
        layers = [bert.under(f"encoder.layer.{i}.") for i in range(config.layers)]
        asks = [_Ask(config, layer) for layer in layers]
        self.asks = nn.ModuleList(asks[1:])  # type: ignore[assignment]
        self.reads = nn.ModuleList(_Read(config, layer) for layer in layers)  # type: ignore[assignment]
        context = [
            f"encoder.layer.{i}.crossattention.self.{name}" for i in range(len(layers)) for name in _KEY_VALUE
        ]
        self.key_value = bert.linear(*context)
        self.position = nn.Parameter(weights.take(f"{position}.weight"), requires_grad=False)
        self.proj = weights.linear(proj)
        tokens = weights.take(f"{stem}_query_tokens")
        norm = bert.norm("embeddings.LayerNorm", config.layer_norm_eps).float()
        for name, constant in zip(("hidden", "query"), asks[0].float()(norm(tokens.float())), strict=True):
            self.register_buffer(name, constant.to(tokens.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """features [B,T,F], T at most the position table -> [B,tokens,width]."""
        B, steps = features.shape[:2]
        if steps > len(self.position):
            raise ValueError(f"{steps} time steps, but the position table holds {len(self.position)}")
        context = self.key_value(features + self.position[:steps])
        pairs = context.unflatten(-1, (len(self.reads), 2, self.heads, -1)).permute(2, 3, 0, 4, 1, 5)
        hidden, query = self.hidden.expand(B, -1, -1), self.query.expand(B, -1, -1)
        for ask, read, (key, value) in zip((None, *self.asks), self.reads, pairs, strict=True):
            if ask is not None:
                hidden, query = ask(hidden)
            hidden = read(hidden, query, key, value)
        return self.proj(hidden)


class _Ask(nn.Module):
    """A layer up to its question to the context: self-attention, norm, query of the cross-attention."""

    def __init__(self, config: QFormerConfig, weights: TensorStore):
        super().__init__()
        qkv = weights.linear(*(f"attention.self.{name}" for name in ("query", *_KEY_VALUE)))
        self.attention = SelfAttention(qkv, weights.linear("attention.output.dense"), config.heads)
        self.norm = weights.norm("attention.output.LayerNorm", config.layer_norm_eps)
        self.query = weights.linear("crossattention.self.query")

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B,M,D] -> hidden behind the norm and the query, both [B,M,D]."""
        hidden = step(self.attention(hidden), hidden, self.norm)
        return hidden, self.query(hidden)


class _Read(nn.Module):
    """The rest of a layer: cross-attention on keys and values that are given, MLP, a norm behind each."""

    def __init__(self, config: QFormerConfig, weights: TensorStore):
        super().__init__()
        self.heads, self.out = config.heads, weights.linear("crossattention.output.dense")
        self.norm1 = weights.norm("crossattention.output.LayerNorm", config.layer_norm_eps)
        up = weights.linear("intermediate_query.dense", activation="gelu")
        self.mlp = MLP(up, weights.linear("output_query.dense"))
        self.norm2 = weights.norm("output_query.LayerNorm", config.layer_norm_eps)

    def forward(self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """hidden, query [B,M,D], key, value [B,H,T,d] -> [B,M,D].

        The sums overwrite the products, hidden stays.
        """
        mixed = attend(query.unflatten(-1, (self.heads, -1)).transpose(1, 2), key, value)
        hidden = step(self.out(mixed), hidden, self.norm1)
        return step(self.mlp(hidden), hidden, self.norm2)
