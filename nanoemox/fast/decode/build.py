"""From Hugging Face's qwen2 or llama model to the decode engine's weights."""

from typing import Any

import torch
from torch import Tensor

from nanoemox_kernels.decode.cpu_engine import EngineLayer, EngineShape
from nanoemox_kernels.linear.quantized import QUANTIZERS, Matrix, quantize_int8

from ...modules.language import attention_sizes
from ..layers.memory import release_pages, trim_heap
from .adapters import take_weight
from .cpu import EngineLanguage
from .smoothing import Smoothed, Smoothing


def engine_language(base: Any, quantize: str | None = None) -> EngineLanguage:
    """From Hugging Face's qwen2 or llama model, adapters merged on the way; it is left hollow.

    Matrices are handed over one by one, so that there is never a second copy of all of them. What a bundle
    holds quantised is taken as it is; matrices of keys and values stay in floating point."""
    config = base.config

    def take(name: str, linear: Any, smoothed: Smoothed) -> Matrix:
        weight = take_weight(linear)
        if isinstance(weight, Matrix):
            return weight
        wanted = smoothed.scaled(name, weight)
        matrix = Matrix(wanted) if quantize is None or name in "kv" else QUANTIZERS[quantize](wanted)
        if matrix.data is not weight:
            release_pages(weight)
        return matrix

    layers = []
    rounds = quantize is not None and not any(hasattr(part, "scales") for part in base.model.layers.modules())
    smoothing = Smoothing(base) if rounds else None
    for layer in base.model.layers:
        smoothed = Smoothed({}, {}) if smoothing is None else smoothing.next(layer)
        attention, mlp = layer.self_attn, layer.mlp
        parts = {name: getattr(attention, f"{name}_proj") for name in "qkvo"}
        parts |= {name: getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")}
        held = {name: part.bias.detach() for name, part in parts.items() if part.bias is not None}
        biases: dict[str, Any] = {name: smoothed.scaled(name, bias) for name, bias in held.items()}
        norms = [
            smoothed.scaled(name, getattr(layer, name).weight.detach())
            for name in ("input_layernorm", "post_attention_layernorm")
        ]
        joined = torch.cat([biases.pop(name) for name in "qkv"]) if "q" in biases else None
        matrices = [take(name, part, smoothed) for name, part in parts.items()]
        rest = {f"{name}_bias": bias for name, bias in biases.items()}
        layers.append(EngineLayer._make([*matrices, *norms, joined, None, None, None, None])._replace(**rest))
        trim_heap()
    embedding, head = (part.weight.detach() for part in (base.model.embed_tokens, base.lm_head))
    size = attention_sizes(config)
    shape = EngineShape(
        config.hidden_size, config.intermediate_size, *size, config.vocab_size, config.rms_norm_eps
    )
    turn, norm = base.model.rotary_emb, base.model.norm.weight.detach()

    def rotary(positions: int) -> tuple[Tensor, Tensor]:
        both = turn(torch.zeros(1), torch.arange(positions)[None])
        cosines, sines = (t[0, :, : shape.head_size // 2].contiguous() for t in both)
        return cosines, sines

    if quantize is None:
        return EngineLanguage(shape, layers, norm, Matrix(head), embedding, rotary)
    kept = [] if smoothing is None else smoothing.layers
    return EngineLanguage(shape, layers, norm, quantize_int8(head), embedding, rotary, head, kept)
