"""expert_fusion in plain PyTorch: the definition that every other implementation is tested against."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..expert_gate.reference import expert_gate


class ExpertFusionWeights(NamedTuple):
    """Raw weights by official name, dots as underscores; weights of the experts are stacked along E."""

    audio_proj_weight: Tensor  # [H,Da]
    audio_proj_bias: Tensor  # [H]
    visual_proj_weight: Tensor  # [H,Dv]
    visual_proj_bias: Tensor  # [H]
    cross_attns_in_proj_weight: Tensor  # [E,3H,H]
    cross_attns_in_proj_bias: Tensor  # [E,3H]
    cross_attns_out_proj_weight: Tensor  # [E,H,H]
    cross_attns_out_proj_bias: Tensor  # [E,H]
    ffns_0_weight: Tensor  # [E,H], LayerNorm
    ffns_0_bias: Tensor  # [E,H]
    ffns_1_weight: Tensor  # [E,H,H]
    ffns_1_bias: Tensor  # [E,H]
    ffns_4_weight: Tensor  # [E,H,H]
    ffns_4_bias: Tensor  # [E,H]
    gate_mlp_0_weight: Tensor  # [H,E*H]
    gate_mlp_0_bias: Tensor  # [H]
    gate_mlp_3_weight: Tensor  # [E,H]
    gate_mlp_3_bias: Tensor  # [E]
    multi_llama_proj_weight: Tensor  # [W,H]
    multi_llama_proj_bias: Tensor  # [W]


class FoldedExpertFusion(NamedTuple):
    """The same matrices; biases are merged into later ones where possible (docs/ops/expert_fusion.md).

    Biases and norms are fp32.
    """

    audio: Tensor  # [H,Da]
    audio_bias: Tensor  # [H]
    vision: Tensor  # [H,Dv]
    qkv: Tensor  # [E,3H,H]
    query_bias: Tensor  # [E,H]
    out: Tensor  # [E,H,H]
    out_bias: Tensor  # [E,H]
    norm: Tensor  # [E,H], fp32
    norm_bias: Tensor  # [E,H]
    hidden: Tensor  # [E,H,H]
    hidden_bias: Tensor  # [E,H]
    last: Tensor  # [E,H,H]
    last_bias: Tensor  # [E,H]
    gate_hidden: Tensor  # [H,E*H]
    gate_hidden_bias: Tensor  # [H]
    gate: Tensor  # [E,H]
    gate_bias: Tensor  # [E]
    project: Tensor  # [W,H]
    project_bias: Tensor  # [W]


def _each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer per expert: x [B,E,T,I], weight [E,O,I], bias [E,O] -> [B,E,T,O]."""
    return torch.einsum("beti,eoi->beto", x, weight) + bias[:, None]


def expert_fusion(
    audio: Tensor, vision: Tensor, weights: ExpertFusionWeights, heads: int = 8, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """audio [B,Ta,E*Da], vision [B,Tv,E*Dv] -> token [B,W], gates [B,E], attention [B,E,h,Ta,Tv].

    Computed in fp32 or wider.
    """
    acc = torch.promote_types(audio.dtype, torch.float32)
    w = ExpertFusionWeights(*(t.to(acc) for t in weights))
    E, H = w.gate_mlp_3_weight.shape
    a, v = (
        F.linear(x.to(acc).unflatten(-1, (E, -1)), weight, bias).transpose(1, 2)
        for x, weight, bias in (
            (audio, w.audio_proj_weight, w.audio_proj_bias),
            (vision, w.visual_proj_weight, w.visual_proj_bias),
        )
    )  # [B,E,T,H]
    parts = zip(w.cross_attns_in_proj_weight.chunk(3, 1), w.cross_attns_in_proj_bias.chunk(3, 1), strict=True)
    query, key, value = (
        _each(x, weight, bias).unflatten(-1, (heads, -1)).transpose(2, 3)
        for x, (weight, bias) in zip((a, v, v), parts, strict=True)
    )  # [B,E,h,T,c]
    attention = (query @ key.transpose(-1, -2) * (H // heads) ** -0.5).softmax(-1)
    mixed = (attention @ value).transpose(2, 3).flatten(3)
    residual = _each(mixed, w.cross_attns_out_proj_weight, w.cross_attns_out_proj_bias) + a
    normed = F.layer_norm(residual, (H,), eps=eps) * w.ffns_0_weight[:, None] + w.ffns_0_bias[:, None]
    hidden = F.gelu(_each(normed, w.ffns_1_weight, w.ffns_1_bias))
    experts = _each(hidden, w.ffns_4_weight, w.ffns_4_bias) + residual
    gate = (w.gate_mlp_0_weight, w.gate_mlp_0_bias, w.gate_mlp_3_weight, w.gate_mlp_3_bias)
    pooled, gates = expert_gate(experts, *gate, pooled=True)
    return (
        F.linear(pooled, w.multi_llama_proj_weight, w.multi_llama_proj_bias).to(audio.dtype),
        gates,
        attention,
    )


def fold_expert_fusion(weights: ExpertFusionWeights) -> FoldedExpertFusion:
    """Merge biases in fp64; the matrices keep the caller's storage. For inference: not differentiable.

    Args:
        weights: the raw weights, of one dtype.

    Returns:
        The weights for the kernels; the shapes are those of the fields.

    Source: docs/architecture.md section 7; docs/ops/expert_fusion.md.
    """
    w = ExpertFusionWeights(*(t.detach() for t in weights))
    d = ExpertFusionWeights(*(t.double() for t in w))
    query_bias, _, value_bias = d.cross_attns_in_proj_bias.chunk(3, 1)
    value_bias = value_bias + d.cross_attns_in_proj_weight.chunk(3, 1)[2] @ d.visual_proj_bias
    out_bias = d.cross_attns_out_proj_bias + (d.cross_attns_out_proj_weight @ value_bias[..., None])[..., 0]
    wide = torch.promote_types(w.audio_proj_weight.dtype, torch.float32)
    matrices = {
        "audio": w.audio_proj_weight, "vision": w.visual_proj_weight, "qkv": w.cross_attns_in_proj_weight,
        "out": w.cross_attns_out_proj_weight, "hidden": w.ffns_1_weight, "last": w.ffns_4_weight,
        "gate_hidden": w.gate_mlp_0_weight, "gate": w.gate_mlp_3_weight, "project": w.multi_llama_proj_weight,
    }  # fmt: skip
    vectors = {
        "audio_bias": d.audio_proj_bias, "query_bias": query_bias, "out_bias": out_bias,
        "norm": d.ffns_0_weight, "norm_bias": d.ffns_0_bias,
        "hidden_bias": d.ffns_1_bias, "last_bias": d.ffns_4_bias,
        "gate_hidden_bias": d.gate_mlp_0_bias, "gate_bias": d.gate_mlp_3_bias,
        "project_bias": d.multi_llama_proj_bias,
    }  # fmt: skip
    return FoldedExpertFusion(
        **{name: t.contiguous() for name, t in matrices.items()},
        **{name: t.to(wide).contiguous() for name, t in vectors.items()},
    )


def expert_fusion_folded(
    audio: Tensor, vision: Tensor, weights: FoldedExpertFusion, heads: int = 8, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """The same results from folded weights; the last layer of the FFN acts on the mean over time."""
    acc = torch.promote_types(audio.dtype, torch.float32)
    w = FoldedExpertFusion(*(t.to(acc) for t in weights))
    E, H = w.gate.shape
    a = F.linear(audio.to(acc).unflatten(-1, (E, -1)), w.audio, w.audio_bias).transpose(1, 2)  # [B,E,Ta,H]
    v = F.linear(vision.to(acc).unflatten(-1, (E, -1)), w.vision).transpose(1, 2)
    no_bias = torch.zeros_like(w.query_bias)
    query, key, value = (
        _each(x, weight, bias).unflatten(-1, (heads, -1)).transpose(2, 3)
        for x, weight, bias in zip(
            (a, v, v), w.qkv.chunk(3, 1), (w.query_bias, no_bias, no_bias), strict=True
        )
    )
    attention = (query @ key.transpose(-1, -2) * (H // heads) ** -0.5).softmax(-1)
    residual = _each((attention @ value).transpose(2, 3).flatten(3), w.out, w.out_bias) + a
    normed = F.layer_norm(residual, (H,), eps=eps) * w.norm[:, None] + w.norm_bias[:, None]
    hidden = F.gelu(_each(normed, w.hidden, w.hidden_bias)).mean(2, keepdim=True)
    pooled = _each(hidden, w.last, w.last_bias) + residual.mean(2, keepdim=True)  # [B,E,1,H]
    token, gates = expert_gate(pooled, w.gate_hidden, w.gate_hidden_bias, w.gate, w.gate_bias, pooled=True)
    return F.linear(token, w.project, w.project_bias).to(audio.dtype), gates, attention


def cost(
    B: int, Ta: int, Tv: int, E: int, Da: int, Dv: int, H: int, W: int, *, itemsize: int = 2
) -> tuple[int, int]:
    """(bytes moved at least, FLOPs) on raw weights."""
    weights = H * (Da + Dv) + E * 6 * H * H + H * E * H + E * H + W * H
    rows = B * E
    flops = 2 * rows * (Ta * Da * H + Tv * Dv * H) + 2 * rows * (4 * Ta + 2 * Tv) * H * H
    flops += 4 * rows * Ta * Tv * H + 2 * B * (H * E * H + E * H + W * H)
    return itemsize * (rows * (Ta * Da + Tv * Dv) + weights + B * W), flops
