"""Adapters folded into the language model's matrices."""

import torch
from torch import Tensor, nn

from ..language import LanguageModel, merge_lora
from .weights import let_go

_BLOCK = 1 << 20  # bytes of fp32 that are merged at a time, so that they stay in cache


def merge_adapters(language: LanguageModel) -> None:
    """Put W + scale * B A in the place of every adapted W, one at a time, and take the adapters off."""
    from peft.tuners.lora import LoraLayer

    base = language.base
    for name, layer in [(n, m) for n, m in base.named_modules() if isinstance(m, LoraLayer)]:
        (adapter,) = layer.lora_A
        linear = layer.base_layer
        linear.weight = nn.Parameter(
            _merged(linear.weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]),
            requires_grad=False,
        )
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, linear)
    del base.peft_config
    language.model = base


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    merged, rows = torch.empty_like(weight), max(1, _BLOCK // (4 * weight.shape[1]))
    for out, old, part in zip(merged.split(rows), weight.split(rows), b.split(rows), strict=True):
        out.copy_(merge_lora(old, a, part, scale))
    let_go(weight)
    return merged
