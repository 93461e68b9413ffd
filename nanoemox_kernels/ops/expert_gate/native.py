"""expert_gate on the C++ library."""

import torch
from torch import Tensor

from ... import _native


def expert_gate_cpu(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, pooled: bool
) -> tuple[Tensor, Tensor]:
    """experts [B,E,T,H] -> out [B,T,H], or [B,H] if pooled, and gates [B,E] fp32. See `op.expert_gate`."""
    B, E, T, H = experts.shape
    experts, w1, w2 = _native.rows(experts), w1.contiguous(), w2.contiguous()
    b1, b2 = _native.vector(b1), _native.vector(b2)
    out = experts.new_empty((B, H) if pooled else (B, T, H))
    gates = torch.empty(B, E)
    scratch = torch.empty(B * (E + 1) * H)
    _native.call(
        "expert_gate", experts.dtype, out, gates, experts, w1, b1, w2, b2, scratch, B, E, T, H, pooled,
        *experts.stride()[:3],
    )  # fmt: skip
    return out, gates
