"""Triton kernel of window_attn: a program computes some windows of a head, on rows of the unshifted map."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned


@triton.jit
def _load_rows(
    qkv_ptr, padding_ptr, row, real, inside, offs_d, stride_t, D: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """[BLOCK_N,BLOCK_D]: queries, keys or values of a head; positions outside the map are padding rows."""
    mask_d = (offs_d < D)[None, :]
    x = tl.load(qkv_ptr + row[:, None] * stride_t + offs_d[None, :], mask=inside[:, None] & mask_d, other=0.0)
    if PADDED:
        outside = tl.load(
            padding_ptr + (row * 0)[:, None] + offs_d[None, :],
            mask=(real & ~inside)[:, None] & mask_d, other=0.0,
        )
        x = tl.where(inside[:, None], x, outside.to(x.dtype))
    return x


@triton.jit(do_not_specialize=["height", "width", "PLACES", "PER"])
def _window_attn(
    out_ptr, qkv_ptr, bias_ptr, padding_ptr,
    height, width, C, scale, PLACES, PER,
    stride_xn, stride_xt, stride_bh, stride_bm,
    HEADS: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, PADDED: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """A head and PER of the PLACES (item, window). Exponentials have base 2: `scale` contains log2 e.

    WHOLE: the bias fills the tile, so that it is read without a mask, in wide loads.
    """
    pid = tl.program_id(0)
    head, group = (pid % HEADS).to(tl.int64), pid // HEADS
    down, across = tl.cdiv(height, WINDOW), tl.cdiv(width, WINDOW)
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    real, in_y, in_x = offs_n < WINDOW * WINDOW, offs_n // WINDOW, offs_n % WINDOW
    # Positions that rolling moves into the last windows: bit 0 for rows, bit 1 for columns.
    rolled = (in_y >= WINDOW - SHIFT).to(tl.int32) + 2 * (in_x >= WINDOW - SHIFT).to(tl.int32)
    pairs = bias_ptr + head * stride_bh + offs_n[:, None] * stride_bm + offs_n[None, :]
    if WHOLE:  # noqa: SIM108 (a constant decides)
        bias = tl.load(pairs)
    else:
        bias = tl.load(pairs, mask=real[:, None] & real[None, :], other=0.0)
    bias = tl.where(real[None, :], bias.to(tl.float32) * 1.4426950408889634, float("-inf"))
    for place in range(group * PER, tl.minimum(group * PER + PER, PLACES)):
        item, w = (place // (down * across)).to(tl.int64), place % (down * across)
        y = (w // across) * WINDOW + in_y  # in the rolled map
        x = (w % across) * WINDOW + in_x
        if SHIFT > 0:
            y = y + SHIFT
            y = tl.where(y >= down * WINDOW, y - down * WINDOW, y)
            x = x + SHIFT
            x = tl.where(x >= across * WINDOW, x - across * WINDOW, x)
        inside = real
        if PADDED:
            inside = real & (y < height) & (x < width)
        row = (y * width + x).to(tl.int64)
        start, pad = qkv_ptr + item * stride_xn + head * D, padding_ptr + head * D
        q = _load_rows(start, pad, row, real, inside, offs_d, stride_xt, D, PADDED)
        k = _load_rows(start + C, pad + C, row, real, inside, offs_d, stride_xt, D, PADDED)
        v = _load_rows(start + 2 * C, pad + 2 * C, row, real, inside, offs_d, stride_xt, D, PADDED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
        if SHIFT > 0:
            last = (w // across == down - 1).to(tl.int32) + 2 * (w % across == across - 1).to(tl.int32)
            region = rolled & last
            scores += tl.where(region[:, None] == region[None, :], 0.0, -144.26950408889634)
        weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        inverse = 1.0 / tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(v.dtype), v, input_precision="ieee") * inverse[:, None]
        place_ptr = out_ptr + (item * height * width + row[:, None]) * C + head * D + offs_d[None, :]
        tl.store(place_ptr, mixed.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (offs_d < D)[None, :])


def tiles(window: int, size: int) -> tuple[int, int]:
    """Block sizes of the positions of a window and of a head; tl.dot needs at least 16 of each."""
    return max(triton.next_power_of_2(window**2), 16), max(triton.next_power_of_2(size), 16)


def window_attn_fwd(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, height: int, width: int, window: int, shift: int
) -> Tensor:
    n, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads = bias.shape[0]
    out = torch.empty(n, T, C, dtype=qkv.dtype, device=qkv.device)
    if out.numel() == 0:
        return out
    qkv, bias = (t if t.stride(-1) == 1 else t.contiguous() for t in (qkv, bias))
    padded = bool(height % window or width % window)
    if padded:
        padding = qkv.new_zeros(3 * C) if padding is None else padding.contiguous()
    size, block = C // heads, tiles(window, C // heads)
    places = n * triton.cdiv(height, window) * triton.cdiv(width, window)
    settings = dict(tuned("window_attn"))
    # A program reads the bias once for its windows; PROGRAMS of them fill the GPU.
    per = max(places * heads // settings.pop("PROGRAMS"), 1)
    if block[0] > 64:  # the rows of the next window do not fit on chip
        settings["num_stages"] = 1
    with on_device_of(out):
        _window_attn[(triton.cdiv(places, per) * heads,)](
            out, qkv, bias, padding if padded else bias, height, width, C, size**-0.5 * math.log2(math.e),
            places, per, *qkv.stride()[:2], *bias.stride()[:2],
            HEADS=heads, D=size, WINDOW=window, SHIFT=shift, PADDED=padded,
            WHOLE=bias.shape[1] == block[0], BLOCK_N=block[0], BLOCK_D=block[1], **settings,
        )
    return out
