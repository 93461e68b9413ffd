"""Triton kernel of time_conv: tiles of a product whose rows are windows of the signal, read in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned
from .._dot import gelu
from .reference import steps


@triton.jit(do_not_specialize=["R", "T", "AFTER"])  # they vary with the batch and the clip
def _time_conv(
    out_ptr, x_ptr, weight_ptr, bias_ptr,
    R, T, AFTER, N, OUT,
    stride_xn, stride_xt,
    C: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """A tile of rows (item, step) and outputs of a group: C channels and N outputs, OUT = N * groups."""
    group = tl.program_id(2).to(tl.int64)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_r, mask_n = offs_r < R, offs_n < N
    first = (offs_r % AFTER) * STRIDE - PADDING
    rows = x_ptr + (offs_r // AFTER).to(tl.int64) * stride_xn + first.to(tl.int64) * stride_xt + group * C
    weight = weight_ptr + (group * N + offs_n) * (KERNEL * C)
    acc = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    for step in range(KERNEL * CHUNKS):
        tap, offs_c = step // CHUNKS, (step % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
        valid = mask_r
        if PADDING > 0:
            valid = mask_r & (first + tap >= 0) & (first + tap < T)
        mask_c = offs_c < C
        x = tl.load(
            rows[:, None] + (tap * tl.cast(stride_xt, tl.int64) + offs_c)[None, :],
            mask=valid[:, None] & mask_c[None, :], other=0.0,
        )
        w = tl.load(
            weight[:, None] + (tap * C + offs_c)[None, :],
            mask=mask_n[:, None] & mask_c[None, :], other=0.0,
        )
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + group * N + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if GELU:
        acc = gelu(acc, out_ptr.dtype.element_ty != tl.float32)
    place = out_ptr + offs_r.to(tl.int64)[:, None] * OUT + group * N + offs_n[None, :]
    tl.store(place, acc.to(out_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_n[None, :])


def _settings(x: Tensor, kernel: int, outputs: int) -> str:
    """Name of the launch settings for a kernel size and outputs per group."""
    if outputs <= 64 or x.dtype == torch.float32:
        return "time_conv"
    return "time_conv_one" if kernel == 1 else "time_conv_wide"


def time_conv_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    kernel: int, stride: int, padding: int, trim: int, gelu: bool,
) -> Tensor:
    (n, T, width), OUT = x.shape, weight.shape[0]
    C = weight.shape[1] // kernel
    groups, after = width // C, steps(T, kernel, stride, padding, trim)
    out = torch.empty(n, after, OUT, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x = x if x.stride(-1) == 1 else x.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    N = OUT // groups
    settings = dict(tuned(_settings(x, kernel, N)))
    settings["BLOCK_K"] = min(settings["BLOCK_K"], max(triton.next_power_of_2(C), 16))
    grid = triton.cdiv(N, settings["BLOCK_N"]), triton.cdiv(n * after, settings["BLOCK_R"]), groups
    with on_device_of(out):
        _time_conv[grid](
            out, x, weight, weight if bias is None else bias, n * after, T, after, N, OUT, *x.stride()[:2],
            C=C, KERNEL=kernel, STRIDE=stride, PADDING=padding, HAS_BIAS=bias is not None, GELU=gelu,
            **settings,
        )
    return out
