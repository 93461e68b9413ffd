"""Triton kernel of attn: a head's tile of queries a program, keys and values passed over once."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned


@triton.jit
def _more(q, keys, values, stride_kt, stride_vt, offs_t, offs_d, T, D, scale, top, total, acc,
          MASKED: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """What the sums are with some more keys. MASKED: not all of these are there; EVEN: D is a power of two."""
    row, column = offs_t.to(tl.int64)[:, None], offs_d[None, :]
    if MASKED:
        there = (offs_t < T)[:, None] & (column < D)
        k = tl.load(keys + row * stride_kt + column, mask=there, other=0.0)
        v = tl.load(values + row * stride_vt + column, mask=there, other=0.0)
    elif EVEN:
        k, v = tl.load(keys + row * stride_kt + column), tl.load(values + row * stride_vt + column)
    else:
        k = tl.load(keys + row * stride_kt + column, mask=column < D, other=0.0)
        v = tl.load(values + row * stride_vt + column, mask=column < D, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where((offs_t < T)[None, :], scores, float("-inf"))
    peak = tl.maximum(top, tl.max(scores, axis=1) * scale)
    weights, fade = tl.exp2(scores * scale - peak[:, None]), tl.exp2(top - peak)
    acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    return peak, total * fade + tl.sum(weights, axis=1), acc


@triton.jit
def _tile(
    out, queries, keys, values, first, M, T, scale, stride_om, stride_qm, stride_kt, stride_vt, offs_d,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Some queries of an item and head, `first` and on."""
    offs_m = first + tl.arange(0, BLOCK_M)
    there = (offs_m < M)[:, None] & (offs_d < D)[None, :]
    q = tl.load(queries + offs_m.to(tl.int64)[:, None] * stride_qm + offs_d[None, :], mask=there, other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    whole = T // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        top, total, acc = _more(q, keys, values, stride_kt, stride_vt, start + tl.arange(0, BLOCK_N), offs_d, T, D,
                                scale, top, total, acc, MASKED=False, EVEN=D == BLOCK_D)  # fmt: skip
    if REST > 0:
        top, total, acc = _more(q, keys, values, stride_kt, stride_vt, whole + tl.arange(0, REST), offs_d, T, D,
                                scale, top, total, acc, MASKED=True, EVEN=False)  # fmt: skip
    to = out + offs_m.to(tl.int64)[:, None] * stride_om + offs_d[None, :]
    tl.store(to, (acc * (1.0 / total)[:, None]).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["M", "T"])  # they vary with the clip
def _attn(
    out_ptr, q_ptr, k_ptr, v_ptr,
    M, T, scale,
    stride_qn, stride_qh, stride_qm, stride_kn, stride_kh, stride_kt, stride_vn, stride_vh, stride_vt,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    LAST: tl.constexpr, REST: tl.constexpr,
):
    """Exponentials are base 2: `scale` has a factor of log2 e. Tiles of one item and head are neighbours.

    LAST, REST: sizes of the blocks for the queries and keys behind the last whole ones; CLIP has 257.
    """
    tiles = tl.cdiv(M, BLOCK_M)
    tile, place = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    item, head = (place // HEADS).to(tl.int64), (place % HEADS).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    out, queries = out_ptr + item * M * (HEADS * D) + head * D, q_ptr + item * stride_qn + head * stride_qh
    keys, values = k_ptr + item * stride_kn + head * stride_kh, v_ptr + item * stride_vn + head * stride_vh
    if LAST == BLOCK_M or tile * BLOCK_M + BLOCK_M <= M:
        _tile(out, queries, keys, values, tile * BLOCK_M, M, T, scale, HEADS * D, stride_qm, stride_kt, stride_vt,
              offs_d, D, BLOCK_M, BLOCK_N, BLOCK_D, REST)  # fmt: skip
    else:
        _tile(out, queries, keys, values, tile * BLOCK_M, M, T, scale, HEADS * D, stride_qm, stride_kt, stride_vt,
              offs_d, D, LAST, BLOCK_N, BLOCK_D, REST)  # fmt: skip


def attn_fwd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    (n, H, M, d), T = q.shape, k.shape[2]
    use = dict(tuned("attn"))
    out = torch.empty(n, M, H * d, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    for name, rows in (("BLOCK_M", M), ("BLOCK_N", T)):
        use[name] = min(use[name], block(rows))
    last, rest = M % use["BLOCK_M"], T % use["BLOCK_N"]
    with on_device_of(out):
        _attn[(n * H * triton.cdiv(M, use["BLOCK_M"]),)](
            out, q, k, v, M, T, d**-0.5 * math.log2(math.e), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            HEADS=H, D=d, BLOCK_D=block(d), LAST=block(last) if last else use["BLOCK_M"],
            REST=block(rest) if rest else 0, **use,
        )
    return out


def block(rows: int) -> int:
    """The size of a block for so many rows."""
    return max(triton.next_power_of_2(rows), 16)  # what a dot wants at least
