"""Schemas, checks and dispatch of feature_taps_ and tap_pool_, which write into their arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _native
from ..._library import KERNEL_DTYPES, register
from . import reference
from .native import residual_norm_cpu, tap_pool_cpu


@dataclass(frozen=True)
class Tap:
    """A tap of a layer: `weight` times the selected row or mean is added to `out`.

    Attributes:
        out: [R,D], fp32 (fp64 for fp64 input), a slice of a buffer that the caller has set to zero.
        weight: factor of the added rows.
        source: "residual", the stream after the update, or "norm", its LayerNorm.
        select: "cls" (row 0) or "mean" (over the N rows).
    """

    out: Tensor
    weight: float = 1.0
    source: str = "residual"
    select: str = "cls"


def _tap_pool_cuda(out: Tensor, hidden: Tensor, weight: float, mean: bool) -> None:
    if out.dtype != torch.float32 or hidden.dtype not in KERNEL_DTYPES:
        return reference.tap_pool_(out, hidden, weight, mean)
    from .kernel import tap_pool_fwd  # the only import of Triton

    tap_pool_fwd(out, hidden, weight, mean)


def _feature_taps_cuda(
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
    tensors = [t for t in (hidden, update, norm_weight, norm_bias) if t is not None]
    if any(t.dtype not in KERNEL_DTYPES for t in tensors):
        return reference.feature_taps_(
            hidden, update, norm_weight, norm_bias, eps, outs, weights, from_norm, means
        )
    from .kernel import residual_norm_fwd

    taps = list(zip(outs, weights, from_norm, means, strict=True))
    # The launch of the norm also writes the first tap of row 0.
    row = next((i for i, (out, *_, mean) in enumerate(taps) if not mean and out.dtype == torch.float32), None)
    fused_tap = None if row is None else taps.pop(row)[:3]
    y = residual_norm_fwd(hidden, update, norm_weight, norm_bias, eps, fused_tap)
    for out, weight, norm, mean in taps:
        _tap_pool_cuda(out, y if norm else hidden, weight, mean)
    return y


def _tap_pool_cpu(out: Tensor, hidden: Tensor, weight: float, mean: bool) -> None:
    if out.dtype != torch.float32 or out.stride(-1) != 1 or not _native.takes(hidden):
        return reference.tap_pool_(out, hidden, weight, mean)
    tap_pool_cpu(out, hidden, weight, mean)


def _feature_taps_cpu(
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
    if not _native.takes(hidden, update, norm_weight, norm_bias):
        return reference.feature_taps_(
            hidden, update, norm_weight, norm_bias, eps, outs, weights, from_norm, means
        )
    y = residual_norm_cpu(hidden, update, norm_weight, norm_bias, eps)
    for out, weight, norm, mean in zip(outs, weights, from_norm, means, strict=True):
        _tap_pool_cpu(out, y if norm else hidden, weight, mean)
    return y


def _fake(hidden: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


_pool = register(
    "tap_pool_(Tensor(a!) out, Tensor hidden, float weight, bool mean) -> ()",
    reference=reference.tap_pool_,
    fake=lambda out, hidden, weight, mean: None,
    cuda=_tap_pool_cuda,
    cpu=_tap_pool_cpu,
)
_taps = register(
    "feature_taps_(Tensor(a!) hidden, Tensor? update, Tensor? norm_weight, Tensor? norm_bias, float eps,"
    " Tensor(b!)[] outs, float[] weights, bool[] from_norm, bool[] means) -> Tensor",
    reference=reference.feature_taps_,
    fake=_fake,
    cuda=_feature_taps_cuda,
    cpu=_feature_taps_cpu,
)


def tap_pool_(out_slice: Tensor, hidden: Tensor, weight: float = 1.0, select: str = "cls") -> None:
    """Add `weight` times row 0 or the mean over rows of a hidden state to a slice of a buffer.

    Args:
        out_slice: [R,D], fp32 (fp64 for fp64 hidden), any strides; added to in place.
        hidden: [R,N,D], any float dtype, N of at least 1.
        weight: factor of the added rows.
        select: "cls" (row 0) or "mean" (over the N rows).

    Raises:
        ValueError: shapes that do not fit together, or a selection that does not exist.
        RuntimeError: an input requires grad.

    Source: docs/architecture.md sections 2 and 3; docs/ops/feature_taps.md.
    """
    _check(hidden, [Tap(out_slice, weight, select=select)], False)
    _refuse_grad(out_slice, hidden)
    _pool(out_slice, hidden, weight, select == "mean")


def feature_taps_(
    hidden: Tensor,
    update: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    taps: Sequence[Tap] = (),
) -> Tensor:
    """The end of one transformer layer and the start of the next: residual add, LayerNorm, taps.

    Args:
        hidden: [R,N,D], the residual stream, any float dtype; updated in place: hidden += update.
        update: [R,N,D], the output of the layer, or None.
        norm_weight: [D], gain of the LayerNorm, or None for no norm.
        norm_bias: [D], its bias, or None.
        eps: added to the variance.
        taps: selections of this layer's output to add to buffers.

    Returns:
        [R,N,D]: LayerNorm(hidden), or a copy of hidden without a norm.

    Raises:
        ValueError: shapes that do not fit together, or a source or selection that does not exist.
        RuntimeError: an input requires grad.

    Source: docs/architecture.md sections 2 and 3; docs/ops/feature_taps.md.
    """
    _check(hidden, taps, norm_weight is not None)
    if update is not None and update.shape != hidden.shape:
        raise ValueError(f"want update {list(hidden.shape)} like hidden, got {list(update.shape)}")
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if tensor is not None and tuple(tensor.shape) != (hidden.shape[2],):
            raise ValueError(f"want {name} [{hidden.shape[2]}], got {list(tensor.shape)}")
    outs = [tap.out for tap in taps]
    _refuse_grad(*(t for t in (hidden, update, norm_weight, norm_bias, *outs) if t is not None))
    return _taps(
        hidden, update, norm_weight, norm_bias, eps, outs, [tap.weight for tap in taps],
        [tap.source == "norm" for tap in taps], [tap.select == "mean" for tap in taps],
    )  # fmt: skip


def _check(hidden: Tensor, taps: Sequence[Tap], normed: bool) -> None:
    if hidden.ndim != 3 or hidden.shape[1] < 1:
        raise ValueError(f"want hidden [R, N, D] with N of at least 1, got {list(hidden.shape)}")
    wide = torch.promote_types(hidden.dtype, torch.float32)
    for tap in taps:
        if tap.select not in ("cls", "mean") or tap.source not in ("residual", "norm"):
            raise ValueError(
                f"want select cls or mean and source residual or norm, got {tap.select!r}, {tap.source!r}"
            )
        if tap.source == "norm" and not normed:
            raise ValueError("a tap of the norm needs norm_weight")
        if tuple(tap.out.shape) != (hidden.shape[0], hidden.shape[2]) or tap.out.dtype != wide:
            want = f"{wide} [{hidden.shape[0]}, {hidden.shape[2]}]"
            raise ValueError(f"want tap out {want}, got {tap.out.dtype} {list(tap.out.shape)}")


def _refuse_grad(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(
            "feature_taps_ and tap_pool_ write into their arguments and have no gradient: inference only"
        )
