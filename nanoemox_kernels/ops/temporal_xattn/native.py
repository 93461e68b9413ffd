"""temporal_xattn on the C++ library."""

import torch
from torch import Tensor

from ... import _native
from .reference import FoldedTemporalXattn


def temporal_xattn_cpu(x: Tensor, weights: FoldedTemporalXattn) -> tuple[Tensor, Tensor]:
    """x [B,T,C] -> tokens [B,M,W] and attention [B,heads,M,T] fp32. See `op.temporal_xattn`."""
    B, T, C = x.shape
    heads, M, _ = weights.scores.shape
    P, W = weights.mix.shape[0], weights.project.shape[0]
    x = _native.rows(x)
    scores, mix, project = (t.contiguous() for t in (weights.scores, weights.mix, weights.project))
    mix_bias, project_bias = _native.vector(weights.mix_bias), _native.vector(weights.project_bias)
    tokens = x.new_empty(B, M, W)
    attention = torch.empty(B, heads, M, T)
    scratch = torch.empty(B * M * (heads * C + P))
    _native.call(
        "temporal_xattn", x.dtype, tokens, attention, scratch, x, scores, mix, mix_bias,
        project, project_bias, B, T, C, M, heads, P, W, *x.stride()[:2],
    )  # fmt: skip
    return tokens, attention
