"""feature_taps_ and tap_pool_ on the C++ library."""

import torch
from torch import Tensor

from ... import _native


def tap_pool_cpu(out: Tensor, hidden: Tensor, weight: float, mean: bool) -> None:
    """out [R,D] fp32 += weight * (row 0 or mean over N) of hidden [R,N,D]. See `op.tap_pool_`."""
    R, N, D = hidden.shape
    hidden = _native.rows(hidden)
    strides = out.stride(0), *hidden.stride()[:2]
    _native.call("tap_pool", hidden.dtype, out, hidden, R, N, D, mean, *strides, weight)


def residual_norm_cpu(
    hidden: Tensor, update: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """hidden [R,N,D] += update, in place; returns its LayerNorm. See `op.feature_taps_`."""
    R, N, D = hidden.shape
    residual = _native.rows(hidden)
    update = update if update is None else _native.rows(update)
    weight, bias = (t if t is None else t.contiguous() for t in (weight, bias))
    y = torch.empty_like(residual, memory_format=torch.contiguous_format)
    update_strides = (0, 0) if update is None else update.stride()[:2]
    strides = *residual.stride()[:2], *update_strides
    _native.call("residual_norm", residual.dtype, y, residual, update, weight, bias, R, N, D, *strides, eps)
    if residual is not hidden:
        hidden.copy_(residual)
    return y
