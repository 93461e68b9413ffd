"""The language model's matrices out of Hugging Face's modules, adapters folded in."""

from typing import Any

import torch
from torch import Tensor, nn

from nanoemox_kernels.linear.quantized import Matrix

from ...modules.language import LanguageModel, merge_lora
from ..layers.memory import release_pages

_BLOCK = 1 << 20  # bytes of fp32 that are merged at a time, so that they stay in cache


def take_weight(layer: Any) -> Tensor | Matrix:
    """The weight of a linear layer, W + scale * B A under adapters; the layer is left without it."""
    linear = getattr(layer, "base_layer", layer)
    weight, linear.weight = linear.weight.detach(), None
    if (scales := getattr(linear, "scales", None)) is not None:
        return Matrix(weight, scales)
    if linear is layer:
        return weight
    (adapter,) = layer.lora_A
    return _merged(weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])


def merge_adapters(language: LanguageModel) -> None:
    """Put the merged matrix in the place of every adapted one, one at a time, and take the adapters off."""
    from peft.tuners.lora import LoraLayer

    base = language.base
    for name, layer in [(n, m) for n, m in base.named_modules() if isinstance(m, LoraLayer)]:
        linear: Any = layer.base_layer
        linear.weight = nn.Parameter(take_weight(layer), requires_grad=False)  # type: ignore[arg-type]
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, linear)
    del base.peft_config
    language.model = base


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    merged, rows = torch.empty_like(weight), max(1, _BLOCK // (4 * weight.shape[1]))
    for out, old, part in zip(merged.split(rows), weight.split(rows), b.split(rows), strict=True):
        out.copy_(merge_lora(old, a, part, scale))
    release_pages(weight)
    return merged
