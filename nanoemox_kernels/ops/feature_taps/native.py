"""feature_taps_ and tap_pool_ on the C++ library."""

import torch
from torch import Tensor

from ... import _native


def tap_pool_cpu(out: Tensor, hidden: Tensor, weight: float, mean: bool) -> None:
    R, N, D = hidden.shape
    hidden = _native.rows(hidden)
    _native.call(
        "tap_pool", hidden.dtype, out, hidden, R, N, D, mean, out.stride(0), *hidden.stride()[:2], weight
    )  # fmt: skip


def residual_norm_cpu(
    hidden: Tensor, update: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    R, N, D = hidden.shape
    work = _native.rows(hidden)
    update = update if update is None else _native.rows(update)
    weight, bias = (t if t is None else t.contiguous() for t in (weight, bias))
    y = torch.empty_like(work, memory_format=torch.contiguous_format)
    _native.call(
        "residual_norm", work.dtype, y, work, update, weight, bias, R, N, D,
        *work.stride()[:2], *(0, 0) if update is None else update.stride()[:2], eps,
    )  # fmt: skip
    if work is not hidden:
        hidden.copy_(work)
    return y
