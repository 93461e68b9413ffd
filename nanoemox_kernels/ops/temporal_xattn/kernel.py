"""Triton kernels of temporal_xattn on folded weights: attention, then two linear layers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned
from .._dot import gelu, rows_dot
from .reference import FoldedTemporalXattn


@triton.jit
def _xattn_context(
    context_ptr, attention_ptr, x_ptr, scores_ptr,
    T, C, M,
    stride_xb, stride_xt,
    HEADS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """A clip b, a query m and a head: softmax over frames and the weighted sum of frames."""
    b, m, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    offs_t, offs_c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_C)
    mask_t, mask_c = offs_t < T, offs_c < C
    frames = tl.load(
        x_ptr + b * stride_xb + offs_t[:, None].to(tl.int64) * stride_xt + offs_c[None, :],
        mask=mask_t[:, None] & mask_c[None, :], other=0.0,
    ).to(tl.float32)  # [BLOCK_T, BLOCK_C]
    row = tl.load(scores_ptr + (head * M + m) * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    scores = tl.where(mask_t, tl.sum(frames * row[None, :], axis=1), float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    weights = weights / tl.sum(weights, axis=0)  # [BLOCK_T]
    tl.store(attention_ptr + ((b * HEADS + head) * M + m) * T + offs_t, weights, mask=mask_t)
    context = tl.sum(frames * weights[:, None], axis=0)  # [BLOCK_C]
    tl.store(context_ptr + ((b * M + m) * HEADS + head) * C + offs_c, context, mask=mask_c)


@triton.jit(do_not_specialize=["R"])  # the number of rows varies with the batch
def _rows_linear(
    out_ptr, rows_ptr, weight_ptr, bias_ptr, residual_ptr,
    R, E, K, N,
    HAS_RESIDUAL: tl.constexpr, GELU: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """out [R,E,N] = rows [R,E,K] W[e]^T + b[e], a tile per program; BLOCK_R rows share a weight."""
    e = tl.program_id(2).to(tl.int64)
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_r, mask_n = offs_r < R, offs_n < N
    rows = rows_ptr + (offs_r * E + e) * K
    weight = weight_ptr + (e * N + offs_n) * K
    acc = rows_dot(rows, mask_r, weight, mask_n, K, PARTS, BLOCK_R, BLOCK_N, BLOCK_K)
    acc += tl.load(bias_ptr + e * N + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    place = (offs_r[:, None] * E + e) * N + offs_n[None, :]
    mask = mask_r[:, None] & mask_n[None, :]
    if GELU:
        acc = gelu(acc, out_ptr.dtype.element_ty != tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + place, mask=mask, other=0.0)
    tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask=mask)


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
    context = torch.empty(B, M, heads, C, dtype=torch.float32, device=x.device)
    hidden = torch.empty(B, M, P, dtype=torch.float32, device=x.device)
    rows, settings = B * M, tuned("rows_linear")
    with on_device_of(out):
        _xattn_context[(B, M, heads)](
            context, attention, x, scores, T, C, M, *x.stride()[:2],
            HEADS=heads, BLOCK_T=triton.next_power_of_2(T), BLOCK_C=triton.next_power_of_2(C),
            **tuned("xattn_context"),
        )
        for result, inputs, weight, bias, K, N, activate in (
            (hidden, context, mix, mix_bias, heads * C, P, True),
            (out, hidden, project, project_bias, P, W, False),
        ):
            grid = triton.cdiv(rows, settings["BLOCK_R"]), triton.cdiv(N, settings["BLOCK_N"])
            _rows_linear[grid](
                result, inputs, weight, bias, bias, rows, 1, K, N, HAS_RESIDUAL=False, GELU=activate, PARTS=2,
                **settings
            )
    return out, attention
