"""norm_act and conv_norm_act in plain PyTorch: the definitions that the kernels are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    """act(LayerNorm(x)) over the last axis; in fp32 or wider."""
    return _norm_act(_wide(x), weight, bias, eps, gelu).to(x.dtype)


def conv_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    stride: int, eps: float, gelu: bool,
) -> Tensor:  # fmt: skip
    """act(LayerNorm(conv(x) + b)) of a signal of one channel, outputs last; in fp32 or wider."""
    wide = _wide(x)
    filters = weight.to(wide.dtype)[:, None]
    out = F.conv1d(wide[:, None], filters, None if bias is None else bias.to(wide.dtype), stride)
    return _norm_act(out.transpose(1, 2), norm_weight, norm_bias, eps, gelu).to(x.dtype)


def steps(samples: int, kernel: int, stride: int) -> int:
    """Outputs along time."""
    return max((samples - kernel) // stride + 1, 0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
    return F.gelu(y) if gelu else y


def cost(rows: int, D: int, *, itemsize: int = 2) -> tuple[int, int]:
    """(bytes moved at least, FLOPs) of norm_act: x and parameters read, the result written."""
    return itemsize * (2 * rows * D + 2 * D), 8 * rows * D


def conv_cost(
    n: int, samples: int, out: int, kernel: int, stride: int, *, itemsize: int = 2
) -> tuple[int, int]:
    """(bytes moved at least, FLOPs) of conv_norm_act."""
    rows = n * steps(samples, kernel, stride)
    return itemsize * (n * samples + out * (kernel + 3) + rows * out), rows * out * (2 * kernel + 8)
