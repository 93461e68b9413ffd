"""Triton kernels of feature_taps_: one pass for residual add and LayerNorm, one for the pooling of a tap."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, rows_at_once, tuned


@triton.jit(do_not_specialize=["R", "N"])  # they vary with the batch and the clip
def _residual_norm(
    y_ptr, hidden_ptr, update_ptr, weight_ptr, bias_ptr, tap_ptr, tap_weight,
    R, N, eps,
    stride_hr, stride_hn, stride_ur, stride_un, stride_tr, stride_td,
    D: tl.constexpr, HAS_UPDATE: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr,
    TAP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """BLOCK_R of R = items * N rows: h += update, y = LayerNorm(h); the variance is a second pass.

    TAP: row 0 of each item is added to its row of the tap, 1: of h, 2: of y.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    r, n = (row // N).to(tl.int64), row % N
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    mask = (row < R)[:, None] & mask_d[None, :]
    place = hidden_ptr + (r * stride_hr + n.to(tl.int64) * stride_hn)[:, None] + offs_d[None, :]
    h = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        change = update_ptr + (r * stride_ur + n.to(tl.int64) * stride_un)[:, None] + offs_d[None, :]
        h += tl.load(change, mask=mask, other=0.0).to(tl.float32)
        rounded = h.to(hidden_ptr.dtype.element_ty)
        tl.store(place, rounded, mask=mask)
        h = rounded.to(tl.float32)  # the norm reads the rounded stream
    y = h
    if HAS_NORM:
        mean = tl.sum(h, axis=1) / D
        centred = tl.where(mask_d[None, :], h - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
        weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
        y = centred * scale[:, None] * weight[None, :]
        if HAS_BIAS:
            y += tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)[None, :]
    stored = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row.to(tl.int64)[:, None] * D + offs_d[None, :], stored, mask=mask)
    if TAP > 0:
        value = h if TAP == 1 else stored.to(tl.float32)
        tap = tap_ptr + r[:, None] * stride_tr + (offs_d.to(tl.int64) * stride_td)[None, :]
        first = mask & (n == 0)[:, None]
        tl.store(tap, tl.load(tap, mask=first, other=0.0) + tap_weight * value, mask=first)


@triton.jit
def _block_sum(place, start, last, stride_n, mask_d, BLOCK_N: tl.constexpr):
    """[BLOCK_D] in fp32: the sum of BLOCK_N rows from `start` on, without those from `last` on."""
    offs_n = start + tl.arange(0, BLOCK_N)
    mask = (offs_n < last)[:, None] & mask_d[None, :]
    tile = tl.load(place[None, :] + (offs_n.to(tl.int64) * stride_n)[:, None], mask=mask, other=0.0)
    return tl.sum(tile.to(tl.float32), axis=0)


@triton.jit
def _sum_rows(place, first, last, stride_n, mask_d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_D] in fp32: the sum of rows `first` to `last`, in blocks of BLOCK_N."""
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(first, last, BLOCK_N):
        total += _block_sum(place, start, last, stride_n, mask_d, BLOCK_N)
    return total


@triton.jit
def _tap_pool(
    out_ptr, hidden_ptr, weight,
    N, D, count,
    stride_or, stride_od, stride_hr, stride_hn, stride_hd,
    MEAN: tl.constexpr, FEW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """An item r and a block of D: out += weight * pooled; a mean is the sum of N rows divided by `count`.

    FEW: one block of BLOCK_N covers all rows.
    """
    r = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    row = hidden_ptr + r * stride_hr + offs_d.to(tl.int64) * stride_hd
    place = out_ptr + r * stride_or + offs_d.to(tl.int64) * stride_od
    before = tl.load(place, mask=mask_d, other=0.0)  # loaded first, in parallel with the rows
    if MEAN and FEW:
        value = _block_sum(row, 0, N, stride_hn, mask_d, BLOCK_N) / count
    elif MEAN:
        value = _sum_rows(row, 0, N, stride_hn, mask_d, BLOCK_N, BLOCK_D) / count
    else:
        value = tl.load(row, mask=mask_d, other=0.0).to(tl.float32)
    tl.store(place, before + weight * value, mask=mask_d)


@triton.jit
def _tap_part(
    part_ptr, hidden_ptr,
    N, D,
    stride_hr, stride_hn, stride_hd,
    SPAN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """part [R,parts,D]: the sum of SPAN rows, for an item r and a block of D."""
    r, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    row = hidden_ptr + r * stride_hr + offs_d.to(tl.int64) * stride_hd
    first = split * SPAN
    value = _sum_rows(row, first, tl.minimum(first + SPAN, N), stride_hn, mask_d, BLOCK_N, BLOCK_D)
    tl.store(part_ptr + (r * tl.num_programs(2) + split) * D + offs_d, value, mask=mask_d)


def residual_norm_fwd(
    hidden: Tensor, update: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    tap: tuple[Tensor, float, bool] | None = None,
) -> Tensor:
    """tap: (out [R,D] fp32, weight, whether of y); row 0 of each item is added to out."""
    R, N, D = hidden.shape
    y = torch.empty(R, N, D, dtype=hidden.dtype, device=hidden.device)
    if y.numel() == 0:
        return y
    work = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    if update is not None and update.stride(-1) != 1:
        update = update.contiguous()
    weight, bias = (t if t is None else t.contiguous() for t in (weight, bias))
    settings = dict(tuned("residual_norm"))
    block = triton.next_power_of_2(D)
    rows = rows_at_once(settings.pop("BLOCK"), block)
    tap_out, tap_weight, of_norm = tap or (y, 0.0, False)
    update_strides = (work if update is None else update).stride()[:2]
    with on_device_of(y):
        _residual_norm[(triton.cdiv(R * N, rows),)](
            y, work, work if update is None else update, y if weight is None else weight,
            y if bias is None else bias, tap_out, tap_weight, R * N, N, eps,
            *work.stride()[:2], *update_strides, *tap_out.stride()[:2],
            D=D, HAS_UPDATE=update is not None, HAS_NORM=weight is not None,
            HAS_BIAS=weight is not None and bias is not None, TAP=0 if tap is None else 1 + of_norm,
            BLOCK_R=rows, BLOCK_D=block, **settings,
        )
    if work is not hidden:
        hidden.copy_(work)
    return y


def tap_pool_fwd(out: Tensor, hidden: Tensor, weight: float, mean: bool) -> None:
    (R, N, D), count = hidden.shape, hidden.shape[1]
    if out.numel() == 0:
        return
    part = tuned("tap_part")
    with on_device_of(out):
        # Few items of many rows: one program per sum would leave most of the GPU idle.
        if mean and 2 * part["SPAN"] < N:
            parts = triton.cdiv(N, part["SPAN"])
            sums = torch.empty(R, parts, D, dtype=torch.float32, device=out.device)
            grid = R, triton.cdiv(D, part["BLOCK_D"]), parts
            _tap_part[grid](sums, hidden, N, D, *hidden.stride(), **part)
            hidden, N, settings = sums, parts, tuned("tap_sum")
        else:
            settings = tuned("tap_pool" if mean else "tap_row")
        _tap_pool[(R, triton.cdiv(D, settings["BLOCK_D"]))](
            out, hidden, weight, N, D, count, *out.stride(), *hidden.stride(), MEAN=mean,
            FEW=settings["BLOCK_N"] >= N, **settings,
        )
