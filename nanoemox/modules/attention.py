"""torch.nn.MultiheadAttention's parameters and result, with every head's weights in fp32 beside it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.MultiheadAttention):
    """Same names, shapes and initialisation as torch's; keys and values are one tensor."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__(width, heads, dropout=dropout, batch_first=True)

    def forward(self, query: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """query [B,M,C], context [B,T,C] -> out [B,M,C], weights [B,heads,M,T] in fp32 (softmax in fp32)."""
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        q = F.linear(query, wq, bq).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = F.linear(context, wk, bk).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        v = F.linear(context, wv, bv).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = torch.matmul(q.float() * self.head_dim**-0.5, k.float().transpose(-1, -2))
        weights = scores.softmax(-1)
        mixed = F.dropout(weights, self.dropout, self.training).to(v.dtype) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), weights
