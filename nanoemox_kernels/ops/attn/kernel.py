"""Triton kernel of attn: a program computes a tile of queries in one pass over keys and values."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned


@triton.jit
def _add_keys(
    q, keys, values, stride_kt, stride_vt, offs_t, offs_d, T, D, scale, top, total, acc,
    MASKED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Running maximum, sum and result after a block of keys.

    MASKED: the block extends past T. EVEN: D is a power of two.
    """
    row, column = offs_t.to(tl.int64)[:, None], offs_d[None, :]
    if MASKED:
        mask = (offs_t < T)[:, None] & (column < D)
        k = tl.load(keys + row * stride_kt + column, mask=mask, other=0.0)
        v = tl.load(values + row * stride_vt + column, mask=mask, other=0.0)
    elif EVEN:
        k, v = tl.load(keys + row * stride_kt + column), tl.load(values + row * stride_vt + column)
    else:
        k = tl.load(keys + row * stride_kt + column, mask=column < D, other=0.0)
        v = tl.load(values + row * stride_vt + column, mask=column < D, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where((offs_t < T)[None, :], scores, float("-inf"))
    peak = tl.maximum(top, tl.max(scores, axis=1) * scale)
    weights, decay = tl.exp2(scores * scale - peak[:, None]), tl.exp2(top - peak)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return peak, total * decay + tl.sum(weights, axis=1), acc


@triton.jit
def _attend_tile(
    out, queries, keys, values, first, M, T, scale, stride_om, stride_qm, stride_kt, stride_vt, offs_d,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    TAIL_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of an item and head, starting at `first`."""
    offs_m = first + tl.arange(0, BLOCK_M)
    mask = (offs_m < M)[:, None] & (offs_d < D)[None, :]
    q = tl.load(queries + offs_m.to(tl.int64)[:, None] * stride_qm + offs_d[None, :], mask=mask, other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    whole = T // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        offs_t = start + tl.arange(0, BLOCK_N)
        top, total, acc = _add_keys(
            q, keys, values, stride_kt, stride_vt, offs_t, offs_d, T, D, scale, top, total, acc,
            MASKED=False, EVEN=D == BLOCK_D,
        )
    if TAIL_N > 0:
        offs_t = whole + tl.arange(0, TAIL_N)
        top, total, acc = _add_keys(
            q, keys, values, stride_kt, stride_vt, offs_t, offs_d, T, D, scale, top, total, acc,
            MASKED=True, EVEN=False,
        )
    place = out + offs_m.to(tl.int64)[:, None] * stride_om + offs_d[None, :]
    tl.store(place, (acc * (1.0 / total)[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "T"])  # they vary with the clip
def _attn(
    out_ptr, q_ptr, k_ptr, v_ptr,
    M, T, scale,
    stride_qn, stride_qh, stride_qm, stride_kn, stride_kh, stride_kt, stride_vn, stride_vh, stride_vt,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    TAIL_M: tl.constexpr, TAIL_N: tl.constexpr,
):
    """out [n,M,HEADS*D]. Tiles of the same item and head have neighbouring programs.

    Exponentials have base 2; `scale` contains the factor log2 e. TAIL_M, TAIL_N: sizes of the blocks for the
    queries and keys after the last full block (TAIL_N = 0: none); CLIP has 257 rows.
    """
    tiles = tl.cdiv(M, BLOCK_M)
    tile, item_head = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    item, head = (item_head // HEADS).to(tl.int64), (item_head % HEADS).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    out = out_ptr + item * M * (HEADS * D) + head * D
    queries = q_ptr + item * stride_qn + head * stride_qh
    keys = k_ptr + item * stride_kn + head * stride_kh
    values = v_ptr + item * stride_vn + head * stride_vh
    first = tile * BLOCK_M
    if TAIL_M == BLOCK_M or first + BLOCK_M <= M:
        _attend_tile(
            out, queries, keys, values, first, M, T, scale, HEADS * D, stride_qm, stride_kt, stride_vt,
            offs_d, D, BLOCK_M, BLOCK_N, BLOCK_D, TAIL_N,
        )
    else:
        _attend_tile(
            out, queries, keys, values, first, M, T, scale, HEADS * D, stride_qm, stride_kt, stride_vt,
            offs_d, D, TAIL_M, BLOCK_N, BLOCK_D, TAIL_N,
        )


def attn_fwd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Launches the kernel; arguments and result as those of `attn`, in a dtype of KERNEL_DTYPES."""
    (n, H, M, d), T = q.shape, k.shape[2]
    use = dict(tuned("attn"))
    out = torch.empty(n, M, H * d, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    for name, rows in (("BLOCK_M", M), ("BLOCK_N", T)):
        use[name] = min(use[name], block(rows))
    tail_m, tail_n = M % use["BLOCK_M"], T % use["BLOCK_N"]
    scale = d**-0.5 * math.log2(math.e)
    with on_device_of(out):
        _attn[(n * H * triton.cdiv(M, use["BLOCK_M"]),)](
            out, q, k, v, M, T, scale, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            HEADS=H, D=d, BLOCK_D=block(d),
            TAIL_M=block(tail_m) if tail_m else use["BLOCK_M"], TAIL_N=block(tail_n) if tail_n else 0,
            **use,
        )
    return out


def block(rows: int) -> int:
    """Size of a block that covers `rows` rows: a power of two."""
    return max(triton.next_power_of_2(rows), 16)  # tl.dot needs at least 16
