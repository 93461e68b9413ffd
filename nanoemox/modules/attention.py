"""torch.nn.MultiheadAttention's parameters and result, with the weights of every head in fp32.

Source: docs/architecture.md sections 7, 8 and 14.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.MultiheadAttention):
    """Cross-attention with the names, shapes and initialisation of torch's; the context is one tensor."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        """
        Args:
            width: of queries, context and output.
            heads: number of heads, which divides the width.
            dropout: of the attention weights, in training.
        """
        super().__init__(width, heads, dropout=dropout, batch_first=True)

    def forward(self, query: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Attend to a context.

        Args:
            query: [B,M,C].
            context: [B,T,C].

        Returns:
            Output [B,M,C] in the dtype of the weights, and attention weights [B,heads,M,T] in fp32, without
            dropout.
        """
        q_weight, k_weight, v_weight = self.in_proj_weight.chunk(3)
        q_bias, k_bias, v_bias = self.in_proj_bias.chunk(3)
        q = self._split_heads(F.linear(query, q_weight, q_bias))
        k = self._split_heads(F.linear(context, k_weight, k_bias))
        v = self._split_heads(F.linear(context, v_weight, v_bias))
        scores = torch.matmul(q.float() * self.head_dim**-0.5, k.float().transpose(-1, -2))
        weights = scores.softmax(-1)
        mixed = F.dropout(weights, self.dropout, self.training).to(v.dtype) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), weights

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B,T,C] -> [B,heads,T,C/heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
