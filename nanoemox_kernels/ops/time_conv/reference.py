"""time_conv in plain PyTorch: the definition that every other implementation is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def steps(T: int, kernel: int, stride: int, padding: int, trim: int) -> int:
    """Outputs along time."""
    return max((T + 2 * padding - kernel) // stride + 1 - trim, 0)


def time_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    trim: int,
    gelu: bool,
) -> Tensor:
    """act(conv(x) + b), without the last `trim` steps; in fp32 or wider."""
    acc = torch.promote_types(x.dtype, torch.float32)
    groups = x.shape[2] * kernel // weight.shape[1]
    filters = weight.to(acc).unflatten(1, (kernel, -1)).transpose(1, 2)
    wide = None if bias is None else bias.to(acc)
    out = F.conv1d(x.to(acc).transpose(1, 2), filters, wide, stride, padding, groups=groups)
    out = out[..., : out.shape[2] - trim].transpose(1, 2)
    return (F.gelu(out) if gelu else out).to(x.dtype)


def cost(
    n: int, T: int, C: int, out: int, kernel: int, stride: int, groups: int, padding: int = 0, trim: int = 0,
    *, itemsize: int = 2,
) -> tuple[int, int]:  # fmt: skip
    """(bytes moved at least, FLOPs): x, weight and bias read, the result written."""
    after = steps(T, kernel, stride, padding, trim)
    weight = out * kernel * C // groups
    return itemsize * (n * T * C + weight + out + n * after * out), 2 * n * after * weight
