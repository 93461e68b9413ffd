"""expert_fusion on the C++ library."""

import torch
from torch import Tensor

from ... import _native
from .reference import FoldedExpertFusion

_EPS = 1e-5


def expert_fusion_cpu(
    audio: Tensor, vision: Tensor, weights: FoldedExpertFusion, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.expert_fusion`. audio [B,Ta,E*Da], vision [B,Tv,E*Dv] -> token [B,W], gates [B,E], attention
    [B,E,heads,Ta,Tv]; the last two in fp32."""
    (B, Ta), Tv = audio.shape[:2], vision.shape[1]
    (E, H), W = weights.gate.shape, weights.project.shape[0]
    audio, vision = audio.contiguous(), vision.contiguous()
    parameters = [
        _native.vector(t) if name.endswith("bias") or name == "norm" else t.contiguous()
        for name, t in weights._asdict().items()
    ]
    token = audio.new_empty(B, W)
    gates = torch.empty(B, E)
    attention = torch.empty(B, E, heads, Ta, Tv)
    scratch = _native.expert_fusion_scratch(B, Ta, Tv, E, H)
    _native.call(
        "expert_fusion", audio.dtype, token, gates, attention, scratch, audio, vision, *parameters,
        B, Ta, Tv, E, weights.audio.shape[1], weights.vision.shape[1], H, heads, W, _EPS,
    )  # fmt: skip
    return token, gates, attention
