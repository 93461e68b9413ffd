"""Schema, checks and dispatch of window_attn."""

from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference

_MOST_POSITIONS, _MOST_NUMBERS = 128, 128  # of a window and of a head, that the kernel holds on chip


def _cuda(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, height: int, width: int, window: int, shift: int
) -> Tensor:
    small = window**2 <= _MOST_POSITIONS and qkv.shape[2] // (3 * len(bias)) <= _MOST_NUMBERS
    if not small or any(t is not None and t.dtype not in KERNEL_DTYPES for t in (qkv, bias, padding)):
        return _reference(qkv, bias, padding, height, width, window, shift)
    from .kernel import window_attn_fwd  # Triton comes in here and nowhere else

    return window_attn_fwd(qkv, bias, padding, height, width, window, shift)


def _reference(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, height: int, width: int, window: int, shift: int
) -> Tensor:
    return reference.window_attn(qkv, bias, padding, height, width, window, shift).contiguous()


def _fake(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, height: int, width: int, window: int, shift: int
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.sizes = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: differentiate the definition, keep no second kernel
        given = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        qkv, bias, padding = given
        out = reference.window_attn(qkv, bias, padding, *ctx.sizes)  # type: ignore[arg-type]
        found = iter(torch.autograd.grad(out, [t for t in given if t is not None], grad, allow_unused=True))
        return (*(None if t is None else next(found) for t in given), None, None, None, None)


_op = register(
    "window_attn(Tensor qkv, Tensor bias, Tensor? padding, int height, int width, int window, int shift) -> Tensor",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    grad=(_setup, _backward),
)


def window_attn(
    qkv: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    *,
    window: int,
    shift: int = 0,
    padding: Tensor | None = None,
) -> Tensor:
    """Attention within the windows of a map, shifted or not, on rows that stay where they are (architecture section 8).

    Args:
        qkv: [n,h*w,3C], queries, keys and values of the map's rows side by side, any float dtype.
        bias: [heads,N,N] with N at least window**2, what is added to the scores of a window's pairs of positions; a
            tile of its own (N the next power of two) is read fastest. What lies past window**2 is not used.
        shift: rows and columns by which the windows are shifted, as Swin does by rolling the map; positions that only
            rolling brings together get -100 on their scores.
        padding: [3C], queries, keys and values of the rows that fill up a map that windows do not divide; default 0.

    Returns:
        [n,h*w,C] in the dtype of qkv.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if qkv.ndim != 3 or bias.ndim != 3 or qkv.shape[1] != height * width or min(height, width) < 1:
        raise ValueError(
            f"want qkv [n, {height * width}, 3C] and bias [heads, N, N], got {list(qkv.shape)} and {list(bias.shape)}"
        )
    heads, N = bias.shape[0], bias.shape[1]
    if window < 1 or not 0 <= shift < window or bias.shape[2] != N or window**2 > N:
        raise ValueError(f"want a shift under the window and bias [heads, N, N] of at least window**2, got window "
                         f"{window}, shift {shift}, bias {list(bias.shape)}")  # fmt: skip
    if heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(
            f"{qkv.shape[2]} numbers a row are not three times as many for each of {heads} heads"
        )
    if padding is not None and tuple(padding.shape) != (qkv.shape[2],):
        raise ValueError(f"want padding [{qkv.shape[2]}], got {list(padding.shape)}")
    return _op(qkv, bias, padding, height, width, window, shift)
