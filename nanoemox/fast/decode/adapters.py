"""Takes matrices out of Hugging Face's modules, with LoRA adapters merged.

Source: docs/architecture.md section 9.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nanoemox_kernels.linear.quantized import Matrix

from ...modules.language import LanguageModel, merge_lora
from ..layers.memory import release_pages

_CACHED_BYTES = 1 << 20  # of fp32 rows that are merged at a time, so that they stay in cache


def take_weight(layer: Any) -> Tensor | Matrix:
    """Take the weight of a linear layer, which is left without it.

    Args:
        layer: nn.Linear, or peft's LoRA layer around one. A linear layer with the attribute `scales` holds a
            quantised weight.

    Returns:
        W [out,in] in its dtype, or W + scale * B A of a LoRA layer; a Matrix where it is quantised.
    """
    linear = getattr(layer, "base_layer", layer)
    weight = linear.weight.detach()
    linear.weight = None
    scales = getattr(linear, "scales", None)
    if scales is not None:
        return Matrix(weight, scales)
    if linear is layer:
        return weight
    (adapter,) = layer.lora_A
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return _merge(weight, a, b, layer.scaling[adapter])


def merge_adapters(language: LanguageModel) -> None:
    """Replace every LoRA layer by a linear layer with the merged matrix, one at a time."""
    from peft.tuners.lora import LoraLayer  # slow to import, and loaded already where there are adapters

    base = language.base
    adapted = [(name, module) for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in adapted:
        linear: Any = layer.base_layer
        linear.weight = nn.Parameter(take_weight(layer), requires_grad=False)  # type: ignore[arg-type]
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, linear)
    del base.peft_config
    language.model = base


def _merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A in the dtype of W, without a copy of all of W in fp32; W is released."""
    merged = torch.empty_like(weight)
    rows = max(1, _CACHED_BYTES // (4 * weight.shape[1]))
    for target, old_rows, b_rows in zip(merged.split(rows), weight.split(rows), b.split(rows), strict=True):
        target.copy_(merge_lora(old_rows, a, b_rows, scale))
    release_pages(weight)
    return merged
