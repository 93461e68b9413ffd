"""Triton kernels of expert_gate: the hidden layer of the gate, then softmax and weighted sum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned


@triton.jit
def _gate_hidden(
    hidden_ptr, experts_ptr, w1_ptr, b1_ptr,
    T, H, K,
    stride_xb, stride_xe, stride_xt, stride_wn,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """gelu(W1 p + b1) for a clip b and a block of rows. Every program recomputes the means, from L2."""
    b = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < H
    rows = offs_n.to(tl.int64) * stride_wn
    acc = tl.zeros([BLOCK_N], dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < K
        base = b * stride_xb + (offs_k // H).to(tl.int64) * stride_xe + offs_k % H
        mean = tl.zeros([BLOCK_K], dtype=tl.float32)
        for t in range(T):
            mean += tl.load(experts_ptr + base + t * stride_xt, mask=mask_k, other=0.0).to(tl.float32)
        w = tl.load(
            w1_ptr + rows[:, None] + offs_k[None, :], mask=mask_n[:, None] & mask_k[None, :], other=0.0
        )
        acc += tl.sum(w.to(tl.float32) * (mean / T)[None, :], axis=1)
    acc += tl.load(b1_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    gelu = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    tl.store(hidden_ptr + b * H + offs_n, gelu, mask=mask_n)


@triton.jit
def _gate_combine(
    out_ptr, gates_ptr, experts_ptr, hidden_ptr, w2_ptr, b2_ptr,
    T, H,
    stride_xb, stride_xe, stride_xt, stride_wn,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, POOLED: tl.constexpr,
):
    """Softmax of the E scores, then a block of the weighted sum of a clip b (and a step t unless POOLED)."""
    b = tl.program_id(0).to(tl.int64)
    t_out = tl.program_id(1).to(tl.int64)
    offs_e = tl.arange(0, BLOCK_E)
    mask_e = offs_e < E
    offs_h = tl.arange(0, BLOCK_H)
    mask_h = offs_h < H
    hidden = tl.load(hidden_ptr + b * H + offs_h, mask=mask_h, other=0.0)
    w2 = tl.load(
        w2_ptr + offs_e[:, None].to(tl.int64) * stride_wn + offs_h[None, :],
        mask=mask_e[:, None] & mask_h[None, :], other=0.0,
    ).to(tl.float32)
    bias = tl.load(b2_ptr + offs_e, mask=mask_e, other=0.0).to(tl.float32)
    scores = tl.sum(w2 * hidden[None, :], axis=1) + bias
    scores = tl.where(mask_e, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    gates = weights / tl.sum(weights, axis=0)  # [BLOCK_E]
    if (t_out == 0) & (tl.program_id(2) == 0):
        tl.store(gates_ptr + b * E + offs_e, gates, mask=mask_e)
    offs = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < H
    acc = tl.zeros([BLOCK], dtype=tl.float32)
    for e in tl.static_range(E):
        gate = tl.sum(tl.where(offs_e == e, gates, 0.0), axis=0)
        row = experts_ptr + b * stride_xb + e * stride_xe + offs
        if POOLED:
            mean = tl.zeros([BLOCK], dtype=tl.float32)
            for t in range(T):
                mean += tl.load(row + t * stride_xt, mask=mask, other=0.0).to(tl.float32)
            acc += gate * (mean / T)
        else:
            acc += gate * tl.load(row + t_out * stride_xt, mask=mask, other=0.0).to(tl.float32)
    place = out_ptr + (b if POOLED else b * T + t_out) * H + offs
    tl.store(place, acc.to(out_ptr.dtype.element_ty), mask=mask)


def expert_gate_fwd(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, pooled: bool
) -> tuple[Tensor, Tensor]:
    B, E, T, H = experts.shape
    experts, w1, w2 = (t if t.stride(-1) == 1 else t.contiguous() for t in (experts, w1, w2))
    b1, b2 = b1.contiguous(), b2.contiguous()
    out = torch.empty((B, H) if pooled else (B, T, H), dtype=experts.dtype, device=experts.device)
    gates = torch.empty(B, E, dtype=torch.float32, device=experts.device)
    if out.numel() == 0:
        return out, gates
    hidden = torch.empty(B, H, dtype=torch.float32, device=experts.device)
    first, second = tuned("gate_hidden"), tuned("gate_combine")
    with on_device_of(out):  # the tensors' GPU, not the current one
        _gate_hidden[(B, triton.cdiv(H, first["BLOCK_N"]))](
            hidden, experts, w1, b1, T, H, E * H, *experts.stride()[:3], w1.stride(0), **first
        )
        _gate_combine[(B, 1 if pooled else T, triton.cdiv(H, second["BLOCK"]))](
            out, gates, experts, hidden, w2, b2, T, H, *experts.stride()[:3], w2.stride(0),
            E=E, BLOCK_E=triton.next_power_of_2(E), BLOCK_H=triton.next_power_of_2(H), POOLED=pooled,
            **second,
        )
    return out, gates
