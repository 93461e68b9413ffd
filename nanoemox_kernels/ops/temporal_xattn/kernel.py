"""Triton kernels of temporal_xattn on folded weights: attention with the hidden layer, then the tokens."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import tuned
from .reference import FoldedTemporalXattn


@triton.jit
def _xattn_hidden(
    hidden_ptr, attention_ptr, x_ptr, scores_ptr, mix_ptr, bias_ptr,
    T, C, M, P,
    stride_xb, stride_xt,
    HEADS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):
    """One b, one query m, a block of hidden units. Attention is recomputed by each block: 2*h*T*C FLOPs."""
    b, m = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_t, offs_c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_C)
    mask_t, mask_c = offs_t < T, offs_c < C
    frames = tl.load(
        x_ptr + b * stride_xb + offs_t[:, None].to(tl.int64) * stride_xt + offs_c[None, :],
        mask=mask_t[:, None] & mask_c[None, :], other=0.0,
    ).to(tl.float32)  # [BLOCK_T, BLOCK_C]
    offs_p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_p = offs_p < P
    acc = tl.load(bias_ptr + offs_p, mask=mask_p, other=0.0).to(tl.float32)
    for head in tl.static_range(HEADS):
        row = tl.load(scores_ptr + (head * M + m) * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        scores = tl.where(mask_t, tl.sum(frames * row[None, :], axis=1), float("-inf"))
        weights = tl.exp(scores - tl.max(scores, axis=0))
        weights = weights / tl.sum(weights, axis=0)  # [BLOCK_T]
        if tl.program_id(2) == 0:
            tl.store(attention_ptr + ((b * HEADS + head) * M + m) * T + offs_t, weights, mask=mask_t)
        context = tl.sum(frames * weights[:, None], axis=0)  # [BLOCK_C]
        mix = tl.load(
            mix_ptr + (offs_p[:, None].to(tl.int64) * HEADS + head) * C + offs_c[None, :],
            mask=mask_p[:, None] & mask_c[None, :], other=0.0,
        )
        acc += tl.sum(mix.to(tl.float32) * context[None, :], axis=1)
    gelu = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    tl.store(hidden_ptr + (b * M + m) * P + offs_p, gelu, mask=mask_p)


@triton.jit
def _xattn_tokens(
    out_ptr, hidden_ptr, project_ptr, bias_ptr,
    P, W,
    BLOCK_W: tl.constexpr, BLOCK_P: tl.constexpr,
):
    """One row (b, m), a block of the token's components."""
    row = tl.program_id(0).to(tl.int64)
    offs_w, offs_p = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_P)
    mask_w, mask_p = offs_w < W, offs_p < P
    hidden = tl.load(hidden_ptr + row * P + offs_p, mask=mask_p, other=0.0)
    weight = tl.load(
        project_ptr + offs_w[:, None].to(tl.int64) * P + offs_p[None, :],
        mask=mask_w[:, None] & mask_p[None, :], other=0.0,
    )
    acc = tl.sum(weight.to(tl.float32) * hidden[None, :], axis=1)
    acc += tl.load(bias_ptr + offs_w, mask=mask_w, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * W + offs_w, acc.to(out_ptr.dtype.element_ty), mask=mask_w)


def temporal_xattn_fwd(x: Tensor, weights: FoldedTemporalXattn) -> tuple[Tensor, Tensor]:
    B, T, C = x.shape
    heads, M, _ = weights.scores.shape
    P, W = weights.mix.shape[0], weights.project.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    scores, mix, mix_bias, project, project_bias = (t.contiguous() for t in weights)
    out = torch.empty(B, M, W, dtype=x.dtype, device=x.device)
    attention = torch.empty(B, heads, M, T, dtype=torch.float32, device=x.device)
    if B == 0 or M == 0:
        return out, attention
    hidden = torch.empty(B, M, P, dtype=torch.float32, device=x.device)
    first, second = tuned("xattn_hidden"), tuned("xattn_tokens")
    with torch.cuda.device_of(out):
        _xattn_hidden[(B, M, triton.cdiv(P, first["BLOCK_P"]))](
            hidden, attention, x, scores, mix, mix_bias, T, C, M, P, *x.stride()[:2],
            HEADS=heads, BLOCK_T=triton.next_power_of_2(T), BLOCK_C=triton.next_power_of_2(C), **first,
        )
        _xattn_tokens[(B * M, triton.cdiv(W, second["BLOCK_W"]))](
            out, hidden, project, project_bias, P, W, BLOCK_P=triton.next_power_of_2(P), **second
        )
    return out, attention
