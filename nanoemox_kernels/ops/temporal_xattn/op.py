"""Schema, checks and dispatch of temporal_xattn."""

from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._library import KERNEL_DTYPES, register
from . import reference
from .native import temporal_xattn_cpu
from .reference import FoldedTemporalXattn, TemporalXattnWeights


def _cuda(
    x: Tensor, scores: Tensor, mix: Tensor, mix_bias: Tensor, project: Tensor, project_bias: Tensor
) -> tuple[Tensor, Tensor]:
    folded = FoldedTemporalXattn(scores, mix, mix_bias, project, project_bias)
    if any(t.dtype not in KERNEL_DTYPES for t in (x, *folded)):
        return _reference(x, *folded)
    from .kernel import temporal_xattn_fwd  # the only import of Triton

    return temporal_xattn_fwd(x, folded)


def _cpu(
    x: Tensor, scores: Tensor, mix: Tensor, mix_bias: Tensor, project: Tensor, project_bias: Tensor
) -> tuple[Tensor, Tensor]:
    folded = FoldedTemporalXattn(scores, mix, mix_bias, project, project_bias)
    if not _native.takes(x, scores, mix, project):
        return _reference(x, *folded)
    return temporal_xattn_cpu(x, folded)


def _reference(x: Tensor, *folded: Tensor) -> tuple[Tensor, Tensor]:
    tokens, attention = reference.temporal_xattn_folded(x, FoldedTemporalXattn(*folded))
    return tokens.contiguous(), attention.contiguous()


def _fake(
    x: Tensor, scores: Tensor, mix: Tensor, mix_bias: Tensor, project: Tensor, project_bias: Tensor
) -> tuple[Tensor, Tensor]:
    B, T, _ = x.shape
    heads, M, _ = scores.shape
    attention = x.new_empty(B, heads, M, T, dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(B, M, project.shape[0]), attention


def _backward(ctx: Any, grad_tokens: Tensor, grad_attention: Tensor) -> tuple:
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        outputs = reference.temporal_xattn_folded(inputs[0], FoldedTemporalXattn(*inputs[1:]))
        return torch.autograd.grad(outputs, inputs, (grad_tokens, grad_attention), allow_unused=True)


_op = register(
    "temporal_xattn(Tensor x, Tensor scores, Tensor mix, Tensor mix_bias, Tensor project,"
    " Tensor project_bias) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    cpu=_cpu,
    grad=(lambda ctx, inputs, output: ctx.save_for_backward(*inputs), _backward),
)


def temporal_xattn(
    x: Tensor,
    weights: TemporalXattnWeights | FoldedTemporalXattn,
    *,
    need_attention: bool = False,
    heads: int = 4,
) -> tuple[Tensor, Tensor | None]:
    """Facial temporal cross-attention: learned queries over frames, followed by a projector.

    Args:
        x: [B,T,C], features of the frames, any float dtype; T at least 1.
        weights: `TemporalXattnWeights`, which run the definition, or folded by `fold_temporal_xattn`, which
            run the kernels.
        need_attention: also return the attention over frames.
        heads: of the attention, for weights that are not folded; they divide C.

    Returns:
        tokens [B,M,W] in the dtype of x; attention [B,h,M,T] in fp32 (fp64 for fp64 input), or None.

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 8; docs/ops/temporal_xattn.md.
    """
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"want x [B, T, C] with T of at least 1, got {list(x.shape)}")
    _check(weights, x.shape[2], heads)
    if isinstance(weights, FoldedTemporalXattn):
        tokens, attention = _op(x, *weights)
    else:
        tokens, attention = reference.temporal_xattn(x, weights, heads)
    return tokens, attention if need_attention else None


def _check(weights: TemporalXattnWeights | FoldedTemporalXattn, C: int, heads: int) -> None:
    if isinstance(weights, FoldedTemporalXattn):
        h, M, _ = weights.scores.shape
        P, W = weights.mix.shape[0], weights.project.shape[0]
        expected = [(h, M, C), (P, h, C), (P,), (W, P), (W,)]
    else:
        M, P, W = (
            weights.query.shape[0],
            weights.face_proj_0_weight.shape[0],
            weights.face_proj_3_weight.shape[0],
        )
        expected = [(M, C), (3 * C, C), (3 * C,), (C, C), (C,), (P, C), (P,), (W, P), (W,)]
        if C % heads:
            raise ValueError(f"a width of {C} is not divisible by {heads} heads")
    for name, tensor, shape in zip(weights._fields, weights, expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"want {name} {list(shape)} for frames of width {C}, got {list(tensor.shape)}")
