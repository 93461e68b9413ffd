"""Triton kernel of quick_gelu_."""

import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned


@triton.jit
def _quick_gelu(x_ptr, COUNT, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < COUNT
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + place, (x * tl.sigmoid(1.702 * x)).to(x_ptr.dtype.element_ty), mask=mask)


def quick_gelu_inplace(x: Tensor) -> None:
    if x.numel() == 0:
        return
    work, settings = x.contiguous(), tuned("quick_gelu")
    with on_device_of(x):
        _quick_gelu[(triton.cdiv(x.numel(), settings["BLOCK"]),)](work, x.numel(), **settings)
    if work is not x:
        x.copy_(work)
