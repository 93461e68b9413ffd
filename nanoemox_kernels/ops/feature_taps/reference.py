"""feature_taps_ and tap_pool_ in plain PyTorch: the definitions that the kernels are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def tap_pool_(out: Tensor, hidden: Tensor, weight: float, mean: bool) -> None:
    """out [R,D] += weight * (mean over N, or row 0) of hidden [R,N,D], in the dtype of out."""
    value = hidden.to(out.dtype)
    out.add_(value.mean(1) if mean else value[:, 0], alpha=weight)


def feature_taps_(
    hidden: Tensor,
    update: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    outs: list[Tensor],
    weights: list[float],
    from_norm: list[bool],
    means: list[bool],
) -> Tensor:
    """hidden += update; y = LayerNorm(hidden) or a copy; taps of hidden or y are added to outs."""
    acc = torch.promote_types(hidden.dtype, torch.float32)
    if update is not None:
        hidden.copy_(hidden.to(acc) + update.to(acc))
    y = hidden.clone(memory_format=torch.contiguous_format)
    if norm_weight is not None:
        wide = None if norm_bias is None else norm_bias.to(acc)
        y = F.layer_norm(hidden.to(acc), hidden.shape[-1:], norm_weight.to(acc), wide, eps).to(hidden.dtype)
    for out, weight, norm, mean in zip(outs, weights, from_norm, means, strict=True):
        tap_pool_(out, y if norm else hidden, weight, mean)
    return y


def cost(R: int, N: int, D: int, taps: int = 0, *, itemsize: int = 2) -> tuple[int, int]:
    """(bytes moved at least, FLOPs): hidden, update and taps read; hidden, y and taps (fp32) written."""
    return itemsize * (4 * R * N * D + 2 * D) + 8 * taps * R * D, 9 * R * N * D
