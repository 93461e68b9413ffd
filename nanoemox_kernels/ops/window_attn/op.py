"""Schema, checks and dispatch of window_attn."""

from typing import Any

import torch
from torch import Tensor

from ..._library import KERNEL_DTYPES, register
from . import reference

_MAX_POSITIONS, _MAX_HEAD_SIZE = 128, 128  # limits of the kernel: positions of a window, head size


def _cuda(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, height: int, width: int, window: int, shift: int
) -> Tensor:
    small = window**2 <= _MAX_POSITIONS and qkv.shape[2] // (3 * len(bias)) <= _MAX_HEAD_SIZE
    if not small or any(t is not None and t.dtype not in KERNEL_DTYPES for t in (qkv, bias, padding)):
        return _reference(qkv, bias, padding, height, width, window, shift)
    from .kernel import window_attn_fwd  # the only import of Triton

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
    with torch.enable_grad():  # training is rare: no second kernel
        inputs = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        qkv, bias, padding = inputs
        out = reference.window_attn(qkv, bias, padding, *ctx.sizes)  # type: ignore[arg-type]
        grads = iter(torch.autograd.grad(out, [t for t in inputs if t is not None], grad, allow_unused=True))
        return (*(None if t is None else next(grads) for t in inputs), None, None, None, None)


_op = register(
    "window_attn(Tensor qkv, Tensor bias, Tensor? padding, int height, int width, int window, int shift)"
    " -> Tensor",
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
    """Swin's attention within the windows of a map, shifted or not, on the rows of the unshifted map.

    Args:
        qkv: [n,height*width,3C], queries, keys and values of the map's rows next to each other, any float
            dtype.
        bias: [heads,N,N] with N at least window**2, added to the scores of every pair of positions of a
            window. A power of two for N is read fastest; entries past window**2 are not used.
        height: rows of the map.
        width: columns of the map.
        window: rows and columns of a window.
        shift: rows and columns by which the windows are shifted, as Swin does by rolling the map; -100 is
            added to the scores of positions that only the roll brings together.
        padding: [3C], queries, keys and values of the positions that pad a map to a multiple of the window;
            default 0.

    Returns:
        [n,height*width,C] in the dtype of qkv; scores, softmax and sums in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 8; docs/ops/window_attn.md.
    """
    if qkv.ndim != 3 or bias.ndim != 3 or qkv.shape[1] != height * width or min(height, width) < 1:
        got = f"{list(qkv.shape)} and {list(bias.shape)}"
        raise ValueError(f"want qkv [n, {height * width}, 3C] and bias [heads, N, N], got {got}")
    heads, N = bias.shape[0], bias.shape[1]
    if window < 1 or not 0 <= shift < window or bias.shape[2] != N or window**2 > N:
        got = f"window {window}, shift {shift}, bias {list(bias.shape)}"
        raise ValueError(
            f"want a shift less than the window and bias [heads, N, N] of at least window**2, got {got}"
        )
    if heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(f"want rows of 3 * {heads} heads of equal size, got {qkv.shape[2]} numbers per row")
    if padding is not None and tuple(padding.shape) != (qkv.shape[2],):
        raise ValueError(f"want padding [{qkv.shape[2]}], got {list(padding.shape)}")
    return _op(qkv, bias, padding, height, width, window, shift)
