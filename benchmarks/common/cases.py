"""The op cases of nanoemox_kernels.shapes as benchmarks time them: ours beside PyTorch's own ways."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoemox_kernels import shapes
from nanoemox_kernels.shapes import SMALL, Sizes, split_heads

__all__ = ["SMALL", "Case", "Sizes", "cases", "compiled"]

Function = Callable[..., tuple[Tensor, ...]]


@dataclass
class Case:
    """One op at one size.

    Attributes:
        functions: "ours", "eager" and "compiled", where the op has folded weights also "compiled folded".
            Each takes `inputs` and returns what it wrote, inputs that it changes in place included.
        moved: bytes at least.
    """

    name: str
    inputs: list[Tensor]
    functions: dict[str, Function]
    moved: int
    flops: int


def compiled(function: Callable) -> Callable:
    """torch.compile without breaks: one would make PyTorch's way slow without a word."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def cases(
    B: int, dtype: torch.dtype, sizes: Sizes | None = None, device: str = "cuda", *, every: bool = False
) -> Iterator[Case]:
    """The ops on B clips. `every`: the variants too that are not timed."""
    for case in shapes.cases(B, dtype, sizes, device):
        if not (case.timed or every):
            continue
        eager, to_compile = _pytorch(case)
        functions = {"ours": case.ours, "eager": eager, "compiled": compiled(to_compile)}
        if case.folded is not None:
            functions["compiled folded"] = compiled(case.folded)
        yield Case(case.name, case.inputs, functions, case.moved, case.flops)


def _pytorch(case: shapes.Case) -> tuple[Function, Function]:
    """(eager, what torch.compile is given): the definition, but where PyTorch has a faster way in the same
    dtype.
    """
    op = case.name.split()[0]
    if op == "attn":
        return _scaled_dot_product_attention(case), case.definition
    if op == "time_conv":
        gelu = case.kernels != ("time_conv_wide",)
        function = _linear_gelu if "MLP" in case.name else _convolution(case, gelu)
        return function, function
    if op == "conv_norm_act":
        return _first_layer, _first_layer
    if case.name == "norm_act gelu":
        return _norm_gelu, _norm_gelu
    return case.definition, case.definition


def _scaled_dot_product_attention(case: shapes.Case) -> Function:
    width = case.inputs[0].shape[2] // 3
    heads = width // (64 if width % 64 == 0 else width // 3)

    def attention(qkv: Tensor) -> tuple[Tensor, ...]:
        mixed = F.scaled_dot_product_attention(*split_heads(qkv, heads))
        return (mixed.transpose(1, 2).flatten(2),)

    return attention


def _convolution(case: shapes.Case, gelu: bool) -> Function:
    """PyTorch's convolution in the dtype of x: HuBERT's positions (16 groups, padded) or its front end
    (stride 2).
    """
    kernel, stride, padding, trim = (128, 1, 64, 1) if gelu else (3, 2, 0, 0)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        filters = weight.unflatten(1, (kernel, -1)).transpose(1, 2)
        groups = x.shape[2] // filters.shape[1]
        out = F.conv1d(x.transpose(1, 2), filters, bias, stride, padding, groups=groups)
        out = out[..., : out.shape[2] - trim].transpose(1, 2)
        return (F.gelu(out) if gelu else out,)

    return convolve


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return (F.gelu(F.linear(x, weight, bias)),)


def _norm_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return (F.gelu(F.layer_norm(x, x.shape[-1:], weight, bias)),)


def _first_layer(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """HuBERT's first layer: stride 5, LayerNorm over the filters, GELU."""
    out = F.conv1d(x[:, None], weight[:, None], bias, 5).transpose(1, 2)
    return (F.gelu(F.layer_norm(out, out.shape[-1:], scale, shift, 1e-5)),)
