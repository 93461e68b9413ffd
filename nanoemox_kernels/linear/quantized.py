"""Weights as fp32, bf16, int8 or int4, and their products with many rows: one copy serves prefill and decoding.

csrc/include/nanoemox.h describes the forms (`nx_matrix`) and the product (`nx_quantized_linear_args`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native

GROUP = 32  # columns that share a scale in int4
BLOCK = 64  # columns that share a scale in int8, that any quantised matrix comes in, and activations that share a scale
PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3, "int8_rows": 4}
ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}
_COMBINE = {"store": 0, "add": 1, "multiply": 2}
_PANEL = 1024  # rows that are quantised, or columns that are unpacked, at a time
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8", torch.uint8: "int4"}


class Matrix(NamedTuple):
    """A weight [rows,columns] in one of five forms.

    fp32 or bf16: data alone. int8: data int8 and scales bf16 [rows,columns/64]. int8_rows: data int8 and scales fp32
    [rows]. int4: data uint8 [rows,columns/2] and scales bf16 [rows,columns/32].
    """

    data: Tensor
    scales: Tensor | None = None

    @property
    def precision(self) -> str:
        rows = self.scales is not None and self.scales.ndim == 1
        return "int8_rows" if rows else _NAMES[self.data.dtype]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.data.shape
        return rows, columns * 2 if self.data.dtype == torch.uint8 else columns

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def quantize_int8(weight: Tensor) -> Matrix:
    """weight [rows,columns] -> int8 in groups of 64 columns, whose largest number becomes 127."""
    data = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), weight.shape[1] // BLOCK, dtype=torch.bfloat16)
    for out, scale, source in zip(
        data.split(_PANEL), scales.split(_PANEL), weight.split(_PANEL), strict=True
    ):
        groups = source.float().unflatten(1, (-1, BLOCK))
        scale.copy_(torch.maximum(groups.amax(2), -groups.amin(2)) / 127)
        out.copy_((groups / scale.float().clamp_min(1e-30)[..., None]).round_().clamp_(-127, 127).flatten(1))
    return Matrix(data, scales)


def quantize_int8_rows(weight: Tensor) -> Matrix:
    """weight [rows,columns] -> int8 with a scale a row, whose largest number becomes 127: quicker beside many rows."""
    scales = torch.maximum(weight.amax(1), -weight.amin(1)).float() / 127
    data = torch.empty(weight.shape, dtype=torch.int8)
    for rows, source, scale in zip(
        data.split(_PANEL), weight.split(_PANEL), scales.split(_PANEL), strict=True
    ):
        rows.copy_((source.float() / scale.clamp_min(1e-30)[:, None]).round_())
    return Matrix(data, scales)


def quantize_int4(weight: Tensor) -> Matrix:
    """weight [rows,columns] -> int4 in groups of 32 columns; the number of largest size in a group becomes -8."""
    rows, columns = weight.shape
    data = torch.empty(rows, columns // 2, dtype=torch.uint8)
    scales = torch.empty(rows, columns // GROUP, dtype=torch.bfloat16)
    for out, scale, source in zip(
        data.split(_PANEL), scales.split(_PANEL), weight.split(_PANEL), strict=True
    ):
        groups = source.float().unflatten(1, (-1, GROUP))
        peak = groups.gather(2, groups.abs().argmax(2, keepdim=True))[..., 0]
        scale.copy_(peak / -8)
        step = scale.float()[..., None]
        level = (groups / torch.where(step == 0, 1, step)).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
        low, high = level.unflatten(1, (-1, 2)).unbind(2)
        out.copy_((low | high << 4).flatten(1))
    return Matrix(data, scales)


QUANTIZERS = {"int8": quantize_int8, "int8_rows": quantize_int8_rows, "int4": quantize_int4}


def dequantize(matrix: Matrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [rows,columns] that a matrix stands for."""
    if matrix.scales is None:
        return matrix.data.to(dtype)
    if matrix.precision == "int8_rows":
        return (matrix.data.float() * matrix.scales[:, None]).to(dtype)
    if matrix.precision == "int8":
        return (
            (matrix.data.unflatten(1, (-1, BLOCK)).float() * matrix.scales.float()[..., None])
            .flatten(1)
            .to(dtype)
        )
    pairs = matrix.data.unflatten(1, (-1, GROUP))  # [rows, columns/64, 32]
    level = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1, 2).float() - 8
    return (level * matrix.scales.float()[..., None]).flatten(1).to(dtype)


def quantized_linear(
    x: Tensor,
    matrix: Matrix,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    out: Tensor | None = None,
    combine: str = "store",
    run: int = 256,
) -> Tensor:
    """activation(x W^T + bias) for many rows, W int8, int8_rows or int4.

    Runs of 64 numbers of a row of x are rounded to int8 with a scale of their own: the result of a row depends on that
    row alone. With int8_rows they may be longer, which is up to a quarter faster and coarser.

    Args:
        x: [...,columns], fp32 or bf16; bias: [rows] or None.
        activation: one of ACTIVATIONS; gelu is the erf form.
        out: [...,rows] in the dtype of x, contiguous; combine: "store", "add" to it or "multiply" into it.
        run: most numbers that share a scale, 64 to 256.

    Returns:
        [...,rows] in the dtype of x: `out`, where it is given.

    Raises:
        RuntimeError: no C++ library. ValueError: shapes or dtypes that do not fit.
    """
    if _native.library is None:
        raise RuntimeError(f"int8 and int4 products need the C++ library: {_native.why_not}")
    N, K = matrix.shape
    if matrix.scales is None or K % BLOCK:
        raise ValueError(
            f"want an int8 or int4 matrix, columns that {BLOCK} divides, got {matrix.precision} {[N, K]}"
        )
    if x.shape[-1] != K or not _native.takes(x):
        raise ValueError(f"want x [..., {K}] in float32 or bfloat16, got {x.dtype} {list(x.shape)}")
    if out is None:
        out = x.new_empty(*x.shape[:-1], N)
    elif out.shape != (*x.shape[:-1], N) or out.dtype != x.dtype or not out.is_contiguous():
        raise ValueError(
            f"want a contiguous out {x.dtype} {[*x.shape[:-1], N]}, got {out.dtype} {list(out.shape)}"
        )
    rows = _native.rows(x.flatten(0, -2) if x.ndim > 1 else x[None])
    M = rows.shape[0]
    scratch = torch.empty(_native.library.nx_cpu_quantized_linear_scratch(M, K) + 64, dtype=torch.uint8)
    held = None if bias is None else _native.vector(bias)
    _native.call(
        "quantized_linear", x.dtype, out, rows, matrix.data, matrix.scales, held,
        scratch.data_ptr() + -scratch.data_ptr() % 64, M, N, K, PRECISIONS[matrix.precision], ACTIVATIONS[activation],
        _COMBINE[combine], rows.stride(0), N, run,
    )  # fmt: skip
    return out


def multiply(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [...,columns] W^T + bias in the dtype of x, for many rows at a time, on the form that decoding uses."""
    if matrix.scales is not None:
        return quantized_linear(x, matrix, bias, run=BLOCK)
    weight, wide = matrix.data, None if bias is None else bias.to(x.dtype)
    if x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available() and x.numel():
        # oneDNN instead of MKL, which leaves AVX-512 alone on some processors: half the time.
        return torch.ops.mkldnn._linear_pointwise(x, weight, wide, "none", [], "")
    return torch.nn.functional.linear(x, weight.to(x.dtype), wide)
