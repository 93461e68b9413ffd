"""Triton kernel of attn: a head's tile of queries a program, keys and values passed over once."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned


@triton.jit(do_not_specialize=["M", "T"])  # they vary with the clip
def _attn(
    out_ptr, q_ptr, k_ptr, v_ptr,
    M, T, scale,
    stride_qn, stride_qh, stride_qm, stride_kn, stride_kh, stride_kt, stride_vn, stride_vh, stride_vt,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Exponentials are base 2: `scale` has a factor of log2 e. Tiles of one item and head are neighbours."""
    tiles = tl.cdiv(M, BLOCK_M)
    tile, place = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    item, head = (place // HEADS).to(tl.int64), (place % HEADS).to(tl.int64)
    offs_m, offs_d = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    mask_m, mask_d = offs_m < M, (offs_d < D)[None, :]
    rows = q_ptr + item * stride_qn + head * stride_qh + offs_m.to(tl.int64)[:, None] * stride_qm
    q = tl.load(rows + offs_d[None, :], mask=mask_m[:, None] & mask_d, other=0.0)
    keys, values = k_ptr + item * stride_kn + head * stride_kh, v_ptr + item * stride_vn + head * stride_vh
    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for first in range(0, T, BLOCK_N):
        offs_t = first + tl.arange(0, BLOCK_N)
        seen, row = offs_t < T, offs_t.to(tl.int64)[:, None]
        k = tl.load(keys + row * stride_kt + offs_d[None, :], mask=seen[:, None] & mask_d, other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
        peak = tl.maximum(top, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - peak[:, None])
        fade = tl.exp2(top - peak)
        v = tl.load(values + row * stride_vt + offs_d[None, :], mask=seen[:, None] & mask_d, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        total = total * fade + tl.sum(weights, axis=1)
        top = peak
    to = out_ptr + (item * M + offs_m[:, None]) * (HEADS * D) + head * D + offs_d[None, :]
    tl.store(to, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_d)


def attn_fwd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    (n, H, M, d), T, use = q.shape, k.shape[2], dict(tuned("attn"))
    out = torch.empty(n, M, H * d, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    for name, rows in (("BLOCK_M", M), ("BLOCK_N", T)):  # a dot wants 16
        use[name] = min(use[name], max(triton.next_power_of_2(rows), 16))
    with on_device_of(out):
        _attn[(n * H * triton.cdiv(M, use["BLOCK_M"]),)](
            out, q, k, v, M, T, d**-0.5 * math.log2(math.e), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            HEADS=H, D=d, BLOCK_D=max(triton.next_power_of_2(d), 16), **use,
        )
    return out
