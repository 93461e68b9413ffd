"""The tensors of a quantised bundle (docs/architecture.md section 14).

A quantised matrix N has its int8 or int4 values under N and its scales under N.scales; the forms are those of
nanoemox_kernels.linear.quantized. Matrices of the language model have the bundle's form, except for those of
keys and values: these are small, and their error would enter every later token. Matrices of the encoders'
layers are int8 with one scale per row in both forms. Everything else stays in floating point.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanoemox_kernels.linear.quantized import BLOCK, GROUP, QUANTIZERS

FORMS = ("int8", "int4")
SCALES = ".scales"
_LANGUAGE = re.compile(r"llama_model\..*layers\.\d+\.(self_attn\.[qo]|mlp\.\w+)_proj\.weight")
_ENCODERS = re.compile(
    r"visual_encoder\..*layers\.\d+\.(self_attn\.\w+_proj|mlp\.fc[12])\.weight"
    r"|acoustic_encoder\..*layers\.\d+\.(attention\.\w+_proj|feed_forward\.\w+_dense)\.weight"
    r"|facial_encoder\.facexformer\.backbone\.0\.\d+\.\d+\.(attn\.(qkv|proj)|mlp\.\d)\.weight"
)


@dataclass(frozen=True)
class Part:
    """A tensor of a bundle: its shape, and its dtype if that is fixed."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


def form_of(name: str, shape: tuple[int, ...], quantize: str) -> str | None:
    """The form of an official tensor in a bundle; None is floating point."""
    if quantize == "none" or len(shape) != 2 or shape[1] % BLOCK:
        return None
    if _LANGUAGE.fullmatch(name):
        return quantize
    return "int8_rows" if _ENCODERS.fullmatch(name) else None


def layout(shapes: dict[str, tuple[int, ...]], quantize: str) -> dict[str, Part]:
    """Name -> part, of every tensor that a bundle of these official tensors holds."""
    parts = {}
    for name, shape in shapes.items():
        form = form_of(name, shape, quantize)
        if form is None:
            parts[name] = Part(shape)
            continue
        rows, columns = shape
        if form == "int4":
            parts[name] = Part((rows, columns // 2), torch.uint8)
            parts[name + SCALES] = Part((rows, columns // GROUP), torch.bfloat16)
        elif form == "int8_rows":
            parts[name] = Part(shape, torch.int8)
            parts[name + SCALES] = Part((rows,), torch.float32)
        else:
            parts[name] = Part(shape, torch.int8)
            parts[name + SCALES] = Part((rows, columns // BLOCK), torch.bfloat16)
    return parts


def producer(
    shapes: dict[str, tuple[int, ...]], quantize: str, produce: Callable[[str], Tensor]
) -> Callable[[str], Tensor]:
    """A function that returns the tensors of `layout` by name, quantising one matrix at a time.

    Args:
        shapes: of the official tensors.
        quantize: "none", "int8" or "int4".
        produce: returns an official tensor by name.
    """
    pending: dict[str, Tensor] = {}  # what was quantised and not yet asked for: values or scales

    def tensor(name: str) -> Tensor:
        if name in pending:
            return pending.pop(name)
        stem = name.removesuffix(SCALES)
        form = form_of(stem, shapes[stem], quantize)
        if form is None:
            return produce(name)
        matrix = QUANTIZERS[form](produce(stem))
        assert matrix.scales is not None
        pending.update({stem: matrix.data, stem + SCALES: matrix.scales})
        return pending.pop(name)

    return tensor
