"""What a quantised bundle holds: of some official matrices N int8 or int4 values under N, and N.scales beside it.

The forms are those of nanoemox_kernels.linear.quantized. The language model's matrices take the bundle's form, but for those of
keys and values: they are few, and what they lose goes into every later token. Those of the encoders' layers are int8
with a scale a row in either. Everything else stays in floating point.
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
    """A tensor of a bundle: its shape, and its dtype where that is fixed."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


def form_of(name: str, shape: tuple[int, ...], quantize: str) -> str | None:
    """The form of an official tensor in a bundle: None is floating point."""
    if quantize == "none" or len(shape) != 2 or shape[1] % BLOCK:
        return None
    if _LANGUAGE.fullmatch(name):
        return quantize
    return "int8_rows" if _ENCODERS.fullmatch(name) else None


def layout(shapes: dict[str, tuple[int, ...]], quantize: str) -> dict[str, Part]:
    """Name -> part of everything a bundle with these official tensors holds."""
    out = {}
    for name, shape in shapes.items():
        form = form_of(name, shape, quantize)
        if form is None:
            out[name] = Part(shape)
        elif form == "int4":
            out[name] = Part((shape[0], shape[1] // 2), torch.uint8)
            out[name + SCALES] = Part((shape[0], shape[1] // GROUP), torch.bfloat16)
        else:
            out[name] = Part(shape, torch.int8)
            rows = Part(shape[:1], torch.float32)
            out[name + SCALES] = (
                rows if form == "int8_rows" else Part((shape[0], shape[1] // BLOCK), torch.bfloat16)
            )
    return out


def producer(
    shapes: dict[str, tuple[int, ...]], quantize: str, produce: Callable[[str], Tensor]
) -> Callable[[str], Tensor]:
    """From a function that gives official tensors, one that gives the parts of `layout`, a matrix at a time."""
    kept: dict[str, Tensor] = {}

    def part(name: str) -> Tensor:
        if name in kept:
            return kept.pop(name)
        stem = name.removesuffix(SCALES)
        form = form_of(stem, shapes[stem], quantize)
        if form is None:
            return produce(name)
        matrix = QUANTIZERS[form](produce(stem))
        assert matrix.scales is not None
        both = {stem: matrix.data, stem + SCALES: matrix.scales}
        out = both.pop(name)
        kept.update(both)
        return out

    return part
