"""gelu_ and quick_gelu_ in plain PyTorch: the definitions that other implementations are tested against."""

import torch
from torch import Tensor

FACTOR = 1.702


def gelu_(x: Tensor) -> None:
    """Replace x by x Phi(x), where Phi is the normal distribution function."""
    torch.ops.aten.gelu_(x)


def quick_gelu_(x: Tensor) -> None:
    """Replace x by x sigmoid(1.702 x), computed in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    x.copy_(wide * torch.sigmoid(FACTOR * wide))


def cost(numbers: int, *, itemsize: int = 2) -> tuple[int, int]:
    """(bytes moved at least, FLOPs): x read and written."""
    return 2 * itemsize * numbers, 5 * numbers
