"""Weight matrices in fp32, bf16, int8 or int4 and their products with many rows.

Prefill and decoding share one copy of the weights. csrc/include/nanoemox.h defines the formats (`nx_matrix`)
and the product (`nx_quantized_linear_args`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native

GROUP = 32  # columns that share a scale in int4
BLOCK = 64  # columns that share a scale in int8; divides the columns of every quantised matrix
# Values of the enumerations of csrc/include/nanoemox.h.
PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3, "int8_rows": 4}
ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}
COMBINATIONS = {"store": 0, "add": 1, "multiply": 2}
_PANEL = 1024  # rows that are quantised at a time
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8", torch.uint8: "int4"}


class Matrix(NamedTuple):
    """A weight [rows,columns] in one of five formats.

    fp32, bf16: data only.
    int8: data int8 and scales bf16 [rows,columns/64].
    int8_rows: data int8 and scales fp32 [rows].
    int4: data uint8 [rows,columns/2] and scales bf16 [rows,columns/32].
    """

    data: Tensor
    scales: Tensor | None = None

    @property
    def precision(self) -> str:
        """The format: a key of PRECISIONS."""
        if self.scales is not None and self.scales.ndim == 1:
            return "int8_rows"
        return _NAMES[self.data.dtype]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight."""
        rows, columns = self.data.shape
        return rows, columns * 2 if self.data.dtype == torch.uint8 else columns

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def quantize_int8(weight: Tensor) -> Matrix:
    """Quantise to int8 in groups of 64 columns; the largest absolute value of a group becomes 127.

    Args:
        weight: [rows,columns], any float dtype; columns is a multiple of 64.
    """
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
    """Quantise to int8 with one scale per row; the largest absolute value of a row becomes 127.

    Products with many rows are faster than with `quantize_int8`.

    Args:
        weight: [rows,columns], any float dtype; columns is a multiple of 64.
    """
    scales = torch.maximum(weight.amax(1), -weight.amin(1)).float() / 127
    data = torch.empty(weight.shape, dtype=torch.int8)
    for out, source, scale in zip(
        data.split(_PANEL), weight.split(_PANEL), scales.split(_PANEL), strict=True
    ):
        out.copy_((source.float() / scale.clamp_min(1e-30)[:, None]).round_())
    return Matrix(data, scales)


def quantize_int4(weight: Tensor) -> Matrix:
    """Quantise to int4 in groups of 32 columns; the value of largest magnitude in a group becomes -8.

    Args:
        weight: [rows,columns], any float dtype; columns is a multiple of 64.
    """
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
    """The weight [rows,columns] that a matrix represents, in `dtype`."""
    if matrix.scales is None:
        return matrix.data.to(dtype)
    if matrix.precision == "int8_rows":
        return (matrix.data.float() * matrix.scales[:, None]).to(dtype)
    scales = matrix.scales.float()[..., None]
    if matrix.precision == "int8":
        groups = matrix.data.unflatten(1, (-1, BLOCK)).float()
    else:
        pairs = matrix.data.unflatten(1, (-1, GROUP))  # [rows, columns/64, 32]
        groups = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1, 2).float() - 8
    return (groups * scales).flatten(1).to(dtype)


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
    """activation(x W^T + bias) for many rows x, with W in int8, int8_rows or int4.

    Blocks of 64 elements of a row of x are quantised to integers with one scale each, so the result of a row
    does not depend on the other rows. With int8_rows the blocks may be longer, which is up to a quarter
    faster but less accurate.

    Args:
        x: [...,columns], fp32 or bf16, on the CPU.
        matrix: W [rows,columns]; columns is a multiple of 64.
        bias: [rows] or None, any float dtype.
        activation: a key of ACTIVATIONS; gelu is the erf form.
        out: [...,rows] in the dtype of x, contiguous: where to write the result.
        combine: "store" the result in `out`, "add" it to `out` or "multiply" `out` by it.
        run: the largest block length, in elements: 64 to 256.

    Returns:
        [...,rows] in the dtype of x; `out` if it was passed.

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
    w = _native.structure("matrix", matrix.data, matrix.scales)
    wide_bias = None if bias is None else _native.vector(bias)
    _native.call(
        "quantized_linear", x.dtype, out, rows, w, wide_bias, _native.quantized_linear_scratch(M, K), M, N, K,
        PRECISIONS[matrix.precision], ACTIVATIONS[activation], COMBINATIONS[combine], rows.stride(0), N, run,
    )  # fmt: skip
    return out


def multiply(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for many rows x, on the copy of the weights that decoding uses.

    Args:
        x: [...,columns], fp32 or bf16, on the CPU.
        matrix: W [rows,columns], any format.
        bias: [rows] or None, any float dtype.

    Returns:
        [...,rows] in the dtype of x.
    """
    if matrix.scales is not None:
        return quantized_linear(x, matrix, bias, run=BLOCK)
    weight = matrix.data
    bias = None if bias is None else bias.to(x.dtype)
    if x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available() and x.numel():
        # oneDNN takes half the time of MKL, which does not use AVX-512 on some processors.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)
