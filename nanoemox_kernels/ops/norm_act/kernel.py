"""Triton kernels of norm_act and conv_norm_act: several rows per program, normalised in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, rows_at_once, tuned
from .._dot import gelu
from .reference import steps


@triton.jit
def _normed(
    h, offs_d, mask_d, weight_ptr, bias_ptr, eps,
    D: tl.constexpr, GELU: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """act(LayerNorm(h)) of h [BLOCK_R,BLOCK_D] in fp32, zero past D; the variance is a second pass."""
    mean = tl.sum(h, axis=1) / D
    centred = tl.where(mask_d[None, :], h - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    if GELU:
        y = gelu(y, SHORT)
    return y


@triton.jit(do_not_specialize=["R"])
def _norm_act(
    y_ptr, x_ptr, weight_ptr, bias_ptr,
    R, eps,
    stride_xr,
    D: tl.constexpr, GELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    mask = (offs_r < R)[:, None] & mask_d[None, :]
    h = tl.load(x_ptr + offs_r[:, None] * stride_xr + offs_d[None, :], mask=mask, other=0.0).to(tl.float32)
    y = _normed(h, offs_d, mask_d, weight_ptr, bias_ptr, eps, D, GELU, y_ptr.dtype.element_ty != tl.float32)
    tl.store(y_ptr + offs_r[:, None] * D + offs_d[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["R", "AFTER"])  # they vary with the batch and the clip
def _conv_norm_act(
    y_ptr, x_ptr, weight_ptr, bias_ptr, norm_ptr, norm_bias_ptr,
    R, AFTER, eps,
    stride_xn, stride_xt,
    D: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Rows (item, step): windows of the signal times all D filters; the result stays in registers."""
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d, offs_k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    mask_r, mask_d, mask_k = offs_r < R, offs_d < D, offs_k < KERNEL
    first = (offs_r // AFTER).to(tl.int64) * stride_xn + (offs_r % AFTER).to(tl.int64) * STRIDE * stride_xt
    x = tl.load(
        x_ptr + first[:, None] + (offs_k * stride_xt)[None, :],
        mask=mask_r[:, None] & mask_k[None, :], other=0.0,
    )
    w = tl.load(
        weight_ptr + offs_d[:, None] * KERNEL + offs_k[None, :],
        mask=mask_d[:, None] & mask_k[None, :], other=0.0,
    )
    h = tl.dot(x, tl.trans(w), input_precision="ieee")
    if HAS_BIAS:
        h += tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)[None, :]
    short = y_ptr.dtype.element_ty != tl.float32
    y = _normed(h, offs_d, mask_d, norm_ptr, norm_bias_ptr, eps, D, GELU, short)
    place = y_ptr + offs_r.to(tl.int64)[:, None] * D + offs_d[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_d[None, :])


def norm_act_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    D = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(-1, D)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    settings = dict(tuned("norm_act"))
    block = triton.next_power_of_2(D)
    BLOCK_R = rows_at_once(settings.pop("BLOCK"), block)
    with on_device_of(y):
        _norm_act[(triton.cdiv(len(rows), BLOCK_R),)](
            y, rows, weight.contiguous(), bias.contiguous(), len(rows), eps, rows.stride(0), D=D, GELU=gelu,
            BLOCK_R=BLOCK_R, BLOCK_D=block, **settings,
        )
    return y


def conv_norm_act_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    stride: int, eps: float, gelu: bool,
) -> Tensor:
    (n, samples), (D, kernel) = x.shape, weight.shape
    after = steps(samples, kernel, stride)
    y = torch.empty(n, after, D, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    settings = dict(tuned("conv_norm_act"))
    block = max(triton.next_power_of_2(D), 16)  # tl.dot needs at least 16
    BLOCK_R = min(max(rows_at_once(settings.pop("BLOCK"), block), 16), 128)
    BLOCK_K = max(triton.next_power_of_2(kernel), 16)
    weight, norm_weight, norm_bias = weight.contiguous(), norm_weight.contiguous(), norm_bias.contiguous()
    filter_bias = weight if bias is None else bias.contiguous()
    with on_device_of(y):
        _conv_norm_act[(triton.cdiv(n * after, BLOCK_R),)](
            y, x, weight, filter_bias, norm_weight, norm_bias, n * after, after, eps, *x.stride(),
            D=D, KERNEL=kernel, STRIDE=stride, HAS_BIAS=bias is not None, GELU=gelu,
            BLOCK_R=BLOCK_R, BLOCK_D=block, BLOCK_K=BLOCK_K, **settings,
        )
    return y
