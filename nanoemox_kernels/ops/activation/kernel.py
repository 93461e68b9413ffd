"""Triton kernel of gelu_ and quick_gelu_."""

import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned
from .._dot import gelu


@triton.jit
def _activation(x_ptr, COUNT, QUICK: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < COUNT
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if QUICK:
        root = tl.rsqrt(1.0 + tl.exp2(-2.4554670 * x))  # 1.702 log2 e; a square is cheaper than a division
        y = x * root * root
    else:
        y = gelu(x, x_ptr.dtype.element_ty != tl.float32)
    tl.store(x_ptr + place, y.to(x_ptr.dtype.element_ty), mask=mask)


def activation_inplace(x: Tensor, quick: bool) -> None:
    if x.numel() == 0:
        return
    work, settings = x.contiguous(), tuned("activation")
    with on_device_of(x):
        _activation[(triton.cdiv(x.numel(), settings["BLOCK"]),)](work, x.numel(), QUICK=quick, **settings)
    if work is not x:
        x.copy_(work)
