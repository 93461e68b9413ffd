"""Schema, checks and dispatch of expert_fusion."""

from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._library import KERNEL_DTYPES, register
from . import reference
from .native import expert_fusion_cpu
from .reference import ExpertFusionWeights, FoldedExpertFusion


def _cpu(audio: Tensor, vision: Tensor, folded: list[Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    w = FoldedExpertFusion(*folded)
    if not _native.takes(
        audio, vision, w.audio, w.vision, w.qkv, w.out, w.hidden, w.last, w.gate_hidden, w.gate, w.project
    ):
        return _reference(audio, vision, folded, heads)
    return expert_fusion_cpu(audio, vision, w, heads)


def _cuda(audio: Tensor, vision: Tensor, folded: list[Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    if any(t.dtype not in KERNEL_DTYPES for t in (audio, vision, *folded)):
        return _reference(audio, vision, folded, heads)
    from .kernel import expert_fusion_fwd  # the only import of Triton

    return expert_fusion_fwd(audio, vision, FoldedExpertFusion(*folded), heads)


def _reference(
    audio: Tensor, vision: Tensor, folded: list[Tensor], heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    out = reference.expert_fusion_folded(audio, vision, FoldedExpertFusion(*folded), heads)
    return out[0].contiguous(), out[1].contiguous(), out[2].contiguous()


def _fake(audio: Tensor, vision: Tensor, folded: list[Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    w = FoldedExpertFusion(*folded)
    wide = torch.promote_types(audio.dtype, torch.float32)
    (B, Ta), Tv, E = audio.shape[:2], vision.shape[1], w.gate.shape[0]
    return (
        audio.new_empty(B, w.project.shape[0]),
        audio.new_empty(B, E, dtype=wide),
        audio.new_empty(B, E, heads, Ta, Tv, dtype=wide),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    audio, vision, folded, ctx.heads = inputs
    ctx.save_for_backward(audio, vision, *folded)


def _backward(ctx: Any, *grads: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: no second kernel
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        outputs = reference.expert_fusion_folded(
            inputs[0], inputs[1], FoldedExpertFusion(*inputs[2:]), ctx.heads
        )
        audio, vision, *folded = torch.autograd.grad(outputs, inputs, grads)
    return audio, vision, folded, None


_op = register(
    "expert_fusion(Tensor audio, Tensor vision, Tensor[] folded, int heads) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    cpu=_cpu,
    grad=(_setup, _backward),
)


def expert_fusion(
    audio: Tensor,
    vision: Tensor,
    weights: ExpertFusionWeights | FoldedExpertFusion,
    *,
    need_attention: bool = False,
    heads: int = 8,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Multi-scale fusion: E experts of cross-attention, their gate, the mean over time and the projection.

    Args:
        audio: [B,Ta,E*Da], concatenated taps of the audio encoder, any float dtype; Ta at least 1.
        vision: [B,Tv,E*Dv], concatenated taps of the vision encoder, like audio.
        weights: `ExpertFusionWeights`, which run the definition, or folded by `fold_expert_fusion`, which run
            the kernels.
        need_attention: also return the attention of each expert.
        heads: of each expert's attention; they divide H.

    Returns:
        token [B,W] in the dtype of audio, gates [B,E], attention [B,E,heads,Ta,Tv] or None; gates and
        attention in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 7; docs/ops/expert_fusion.md.
    """
    if isinstance(weights, FoldedExpertFusion):
        first, second, gate = weights.audio, weights.vision, weights.gate
    else:
        first, second, gate = weights.audio_proj_weight, weights.visual_proj_weight, weights.gate_mlp_3_weight
    (E, H), Da, Dv = gate.shape, first.shape[-1], second.shape[-1]
    fits = audio.ndim == vision.ndim == 3 and audio.shape[0] == vision.shape[0]
    if (
        not fits
        or audio.shape[2] != E * Da
        or vision.shape[2] != E * Dv
        or not audio.shape[1] * vision.shape[1]
    ):
        got = f"{list(audio.shape)} and {list(vision.shape)}"
        raise ValueError(
            f"want audio [B, Ta, {E * Da}] and vision [B, Tv, {E * Dv}], Ta and Tv of at least 1, got {got}"
        )
    if H % heads:
        raise ValueError(f"a width of {H} is not divisible by {heads} heads")
    _check(weights, E, Da, Dv, H)
    if isinstance(weights, FoldedExpertFusion):
        token, gates, attention = _op(audio, vision, list(weights), heads)
    else:
        token, gates, attention = reference.expert_fusion(audio, vision, weights, heads)
    return token, gates, attention if need_attention else None


def _check(weights: ExpertFusionWeights | FoldedExpertFusion, E: int, Da: int, Dv: int, H: int) -> None:
    row, square = (E, H), (E, H, H)
    if isinstance(weights, FoldedExpertFusion):
        W = weights.project.shape[0]
        expected: list[tuple[int, ...]] = [
            (H, Da), (H,), (H, Dv), (E, 3 * H, H), row, square, row, row, row, square, row, square, row,
            (H, E * H), (H,), row, (E,), (W, H), (W,),
        ]  # fmt: skip
    else:
        W = weights.multi_llama_proj_weight.shape[0]
        expected = [
            (H, Da), (H,), (H, Dv), (H,), (E, 3 * H, H), (E, 3 * H), square, row, row, row, square, row,
            square, row, (H, E * H), (H,), row, (E,), (W, H), (W,),
        ]  # fmt: skip
    for name, tensor, shape in zip(weights._fields, weights, expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"want {name} {list(shape)}, got {list(tensor.shape)}")
