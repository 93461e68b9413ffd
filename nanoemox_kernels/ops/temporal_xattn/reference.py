"""temporal_xattn in plain PyTorch, the definition, and its folded form."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TemporalXattnWeights(NamedTuple):
    """Raw weights by official name, without the prefix `facial_encoder.` and with dots as underscores."""

    query: Tensor  # [M,C]
    attn_in_proj_weight: Tensor  # [3C,C]
    attn_in_proj_bias: Tensor  # [3C]
    attn_out_proj_weight: Tensor  # [C,C]
    attn_out_proj_bias: Tensor  # [C]
    face_proj_0_weight: Tensor  # [P,C]
    face_proj_0_bias: Tensor  # [P]
    face_proj_3_weight: Tensor  # [W,P]
    face_proj_3_bias: Tensor  # [W]


class FoldedTemporalXattn(NamedTuple):
    """Weights with adjacent linear layers multiplied together (docs/ops/temporal_xattn.md)."""

    scores: Tensor  # [h,M,C]: each head's queries times the key projection
    mix: Tensor  # [P,h,C]: value, output projection and the projector's first layer of each head
    mix_bias: Tensor  # [P], fp32
    project: Tensor  # [W,P]
    project_bias: Tensor  # [W], fp32


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def temporal_xattn(x: Tensor, weights: TemporalXattnWeights, heads: int = 4) -> tuple[Tensor, Tensor]:
    """Learned queries attend over frames; a two-layer projector follows.

    x [B,T,C] -> [B,M,W], attention [B,h,M,T].
    """
    w = TemporalXattnWeights(*(_wide(t) for t in weights))
    frames = _wide(x)
    C = x.shape[-1]
    (wq, wk, wv), (bq, bk, bv) = w.attn_in_proj_weight.chunk(3), w.attn_in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(t, weight, bias).unflatten(-1, (heads, -1)).transpose(-3, -2)
        for t, weight, bias in ((w.query, wq, bq), (frames, wk, bk), (frames, wv, bv))
    )  # [h,M,c], [B,h,T,c], [B,h,T,c]
    attention = (q @ k.transpose(-1, -2) * (C // heads) ** -0.5).softmax(-1)
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    attended = F.linear(mixed, w.attn_out_proj_weight, w.attn_out_proj_bias)
    hidden = F.gelu(F.linear(attended, w.face_proj_0_weight, w.face_proj_0_bias))
    return F.linear(hidden, w.face_proj_3_weight, w.face_proj_3_bias).to(x.dtype), attention


def fold_temporal_xattn(weights: TemporalXattnWeights, heads: int = 4) -> FoldedTemporalXattn:
    """Fold in fp64; matrices in the dtype of the weights, biases in fp32. For inference: not differentiable.

    Args:
        weights: the raw weights, of one dtype.
        heads: of the attention; they divide C.

    Returns:
        The weights for the kernels; the shapes are those of the fields.

    Source: docs/architecture.md section 8; docs/ops/temporal_xattn.md.
    """
    dtype = weights.query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    w = TemporalXattnWeights(*(t.detach().double() for t in weights))
    C = w.query.shape[1]
    (wq, wk, wv), (bq, _, bv) = w.attn_in_proj_weight.chunk(3), w.attn_in_proj_bias.chunk(3)
    q = F.linear(w.query, wq, bq).unflatten(-1, (heads, -1))  # [M,h,c]
    scores = torch.einsum("mhc,hcd->hmd", q, wk.unflatten(0, (heads, -1))) * (C // heads) ** -0.5
    out = w.face_proj_0_weight @ w.attn_out_proj_weight  # [P,C]
    mix = torch.einsum("phc,hcd->phd", out.unflatten(1, (heads, -1)), wv.unflatten(0, (heads, -1)))
    bias = out @ bv + w.face_proj_0_weight @ w.attn_out_proj_bias + w.face_proj_0_bias
    folded = FoldedTemporalXattn(scores, mix, bias, w.face_proj_3_weight, w.face_proj_3_bias)
    return FoldedTemporalXattn(*(t.to(wide if t.ndim == 1 else dtype).contiguous() for t in folded))


def temporal_xattn_folded(x: Tensor, weights: FoldedTemporalXattn) -> tuple[Tensor, Tensor]:
    """The same result from folded weights."""
    w = FoldedTemporalXattn(*(_wide(t) for t in weights))
    frames = _wide(x)
    attention = torch.einsum("btc,hmc->bhmt", frames, w.scores).softmax(-1)
    context = torch.einsum("bhmt,btc->bmhc", attention, frames)
    hidden = F.gelu(torch.einsum("bmhc,phc->bmp", context, w.mix) + w.mix_bias)
    return F.linear(hidden, w.project, w.project_bias).to(x.dtype), attention


def cost(B: int, T: int, C: int, M: int, heads: int, P: int, W: int, *, itemsize: int = 2) -> tuple[int, int]:
    """(bytes moved at least, FLOPs) of the folded form."""
    weights = heads * M * C + P * heads * C + P + W * P + W
    flops = 2 * B * heads * M * (2 * T * C) + 2 * B * M * (P * heads * C + W * P)
    return itemsize * (B * T * C + weights + B * M * W), flops
