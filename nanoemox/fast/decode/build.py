"""From Hugging Face's qwen2 or llama model to the decode engine's weights."""

from typing import Any

import torch
from torch import Tensor

from nanoemox_kernels.decode.cpu_engine import EngineLayer, EngineShape
from nanoemox_kernels.linear.quantized import QUANTIZERS, Matrix, quantize_int8

from ...modules.language import attention_sizes
from ..layers.memory import release_pages, trim_heap
from .adapters import take_weight
from .cpu import EngineLanguage, Rotary
from .smoothing import Smoothed, Smoothing


def engine_language(base: Any, quantize: str | None = None) -> EngineLanguage:
    """Build the engine's form of a language model.

    Matrices are taken one by one and adapters merged on the way, so that memory never holds two copies of
    all of them. Matrices that are quantised already are used as they are; those of keys and values stay in
    floating point.

    Args:
        base: Hugging Face's qwen2 or llama model for causal language modelling, with or without adapters. It
            is left without its matrices.
        quantize: None, "int8" or "int4".

    Returns:
        The model on the decode engine. Its weights in floating point have the dtype of `base`.

    Source: docs/architecture.md sections 9 and 22.
    """
    is_quantized = any(hasattr(module, "scales") for module in base.model.layers.modules())
    smoothing = Smoothing(base) if quantize is not None and not is_quantized else None
    layers = []
    for layer in base.model.layers:
        factors = Smoothed({}, {}) if smoothing is None else smoothing.next(layer)
        layers.append(_engine_layer(layer, factors, quantize))
        trim_heap()
    embedding, head = base.model.embed_tokens.weight.detach(), base.lm_head.weight.detach()
    norm = base.model.norm.weight.detach()
    heads, kv_heads, head_size = attention_sizes(base.config)
    shape = EngineShape(
        width=base.config.hidden_size,
        mlp=base.config.intermediate_size,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocab=base.config.vocab_size,
        eps=base.config.rms_norm_eps,
    )
    rotary = _rotary(base.model.rotary_emb, head_size)
    if quantize is None:
        return EngineLanguage(shape, layers, norm, Matrix(head), embedding, rotary)
    smoothed = [] if smoothing is None else smoothing.layers
    return EngineLanguage(shape, layers, norm, quantize_int8(head), embedding, rotary, head, smoothed)


def _engine_layer(layer: Any, factors: Smoothed, quantize: str | None) -> EngineLayer:
    """Take the weights of one layer, scaled by the factors and quantised."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = {name: getattr(attention, f"{name}_proj") for name in "qkvo"}
    linears |= {name: getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")}
    biases = {
        name: factors.scaled(name, linear.bias.detach())
        for name, linear in linears.items()
        if linear.bias is not None
    }
    input_norm, post_norm = (
        factors.scaled(name, getattr(layer, name).weight.detach())
        for name in ("input_layernorm", "post_attention_layernorm")
    )
    matrices = {name: _take_matrix(name, linear, factors, quantize) for name, linear in linears.items()}
    return EngineLayer(
        **matrices,
        input_norm=input_norm,
        post_norm=post_norm,
        bias=torch.cat([biases[name] for name in "qkv"]) if "q" in biases else None,
        o_bias=biases.get("o"),
        gate_bias=biases.get("gate"),
        up_bias=biases.get("up"),
        down_bias=biases.get("down"),
    )


def _take_matrix(name: str, linear: Any, factors: Smoothed, quantize: str | None) -> Matrix:
    weight = take_weight(linear)
    if isinstance(weight, Matrix):
        return weight
    scaled = factors.scaled(name, weight)
    format_ = None if name in ("k", "v") else quantize
    matrix = Matrix(scaled) if format_ is None else QUANTIZERS[format_](scaled)
    if matrix.data is not weight:
        release_pages(weight)
    return matrix


def _rotary(embedding: Any, head_size: int) -> Rotary:
    """The rotary tables of Hugging Face's module, which repeats every angle for the second half of a head."""

    def tables(positions: int) -> tuple[Tensor, Tensor]:
        repeated = embedding(torch.zeros(1), torch.arange(positions)[None])
        cosines, sines = (table[0, :, : head_size // 2].contiguous() for table in repeated)
        return cosines, sines

    return tables
