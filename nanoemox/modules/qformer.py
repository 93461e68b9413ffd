"""From encoder features to language-model tokens: Q-Former, time mean or weighted sum.

Source: docs/architecture.md sections 4, 5, 6 and 18.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import BranchConfig, QFormerConfig


class QueryAttention(nn.Module):
    """BERT's attention: output projection, dropout, residual and a norm behind them."""

    def __init__(self, config: QFormerConfig, context_width: int):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(context_width, config.hidden_size)
        self.value = nn.Linear(context_width, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """hidden [B,M,D], context [B,T,C] or None for self-attention -> [B,M,D]."""
        context = hidden if context is None else context
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, x in ((self.query, hidden), (self.key, context), (self.value, context))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
        update = F.dropout(self.dense(mixed), self.dropout, self.training)
        return self.norm(update + hidden)


class QueryMLP(nn.Module):
    """BERT's MLP with GELU: dropout, residual and a norm behind them."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.mlp_size)
        self.down = nn.Linear(config.mlp_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [B,M,D] -> [B,M,D]."""
        update = self.dropout(self.down(F.gelu(self.up(hidden))))
        return self.norm(update + hidden)


class QFormerLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the context, MLP."""

    def __init__(self, config: QFormerConfig, context_width: int):
        super().__init__()
        self.attention = QueryAttention(config, config.hidden_size)
        self.crossattention = QueryAttention(config, context_width)
        self.mlp = QueryMLP(config)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """hidden [B,M,D], context [B,T,C] -> [B,M,D]."""
        hidden = self.attention(hidden)
        hidden = self.crossattention(hidden, context)
        return self.mlp(hidden)


class QFormer(nn.Module):
    """Learned queries that attend to themselves and to a context in every layer."""

    def __init__(self, config: QFormerConfig, context_width: int, queries: int):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, queries, config.hidden_size).normal_(std=0.02))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(QFormerLayer(config, context_width) for _ in range(config.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, context: Tensor) -> Tensor:
        """context [B,T,C] -> [B,queries,hidden_size]."""
        hidden = self.dropout(self.norm(self.query_tokens)).expand(context.shape[0], -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, context)
        return hidden


class QFormerBranch(nn.Module):
    """Position table, Q-Former, projection."""

    def __init__(self, config: BranchConfig, qformer: QFormerConfig, features: int, width: int):
        """
        Args:
            config: numbers of tokens and positions.
            qformer: sizes of the Q-Former.
            features: width of the encoder's features.
            width: of the language model.
        """
        super().__init__()
        self.position = nn.Embedding(config.positions, features)
        self.qformer = QFormer(qformer, features, config.tokens)
        self.proj = nn.Linear(qformer.hidden_size, width)

    def forward(self, features: Tensor) -> Tensor:
        """features [B,T,F], T at most the position table -> [B,tokens,width]."""
        steps, limit = features.shape[1], self.position.num_embeddings
        if steps > limit:
            raise ValueError(f"{steps} time steps, but the position table holds {limit}")
        context = features + self.position.weight[:steps]
        return self.proj(self.qformer(context))


class MeanBranch(nn.Module):
    """Variant `mean`: one projected time mean, repeated to the number of tokens."""

    def __init__(self, config: BranchConfig, features: int, width: int):
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(features, width)

    def pool(self, features: Tensor) -> Tensor:
        """features [B,T,F] -> [B,F]."""
        return features.mean(1)

    def forward(self, features: Tensor) -> Tensor:
        """features [B,T,F] -> [B,tokens,width]."""
        token = self.proj(self.pool(features))
        return token.unsqueeze(1).expand(-1, self.tokens, -1)


class AttentionBranch(MeanBranch):
    """Variant `attention`: a weighted sum over time. The official weights have no softmax."""

    def __init__(self, config: BranchConfig, features: int, width: int):
        super().__init__(config, features, width)
        self.weight = nn.Linear(features, 1)

    def pool(self, features: Tensor) -> Tensor:
        """features [B,T,F] -> [B,F]."""
        return (self.weight(features) * features).sum(1)


def build_branch(config: BranchConfig, qformer: QFormerConfig, features: int, width: int) -> nn.Module:
    """The branch of a type.

    Args:
        config: its type and numbers of tokens and positions.
        qformer: sizes of the Q-Former, for the type `qformer`.
        features: width of the encoder's features.
        width: of the language model.
    """
    if config.type == "qformer":
        return QFormerBranch(config, qformer, features, width)
    variants = {"mean": MeanBranch, "attention": AttentionBranch}
    return variants[config.type](config, features, width)
