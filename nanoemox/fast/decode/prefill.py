"""Reads prompts into the decode engine's cache, through PyTorch, on the engine's own weights.

Products take the rows of all prompts together, attention each prompt by itself.
Source: docs/architecture.md sections 9 and 22.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoemox_kernels.decode.cpu_engine import DecodeEngine, EngineLayer, EngineShape
from nanoemox_kernels.linear.quantized import BLOCK, Matrix, multiply, quantized_linear
from nanoemox_kernels.ops.attn.native import attention


class _Span(NamedTuple):
    """The place of a prompt: its slot, its rows among those of all prompts, its positions in the cache."""

    slot: int
    rows: slice
    first: int
    end: int


def prefill(
    prompts: Sequence[Tensor],
    slots: Sequence[int],
    first: int,
    layers: Sequence[EngineLayer],
    tables: Sequence[Tensor],
    engine: DecodeEngine,
) -> Tensor:
    """Run prompts through all layers and write their keys and values into the cache.

    Args:
        prompts: embedded, [L,width] each.
        slots: slot of each prompt in the cache.
        first: position of the prompts' first token; the cache holds the ones before it.
        layers: weights of the layers.
        tables: cosines and sines by position, [capacity,head_size/2] each, fp32.
        engine: its cache is written.

    Returns:
        Hidden rows [B,width] of the last positions, before the final norm, in the dtype of the cache.
    """
    lengths = [len(prompt) for prompt in prompts]
    padding = _padding_rows(sum(lengths))
    empty = prompts[0].new_zeros(padding, prompts[0].shape[1])
    hidden = torch.cat([*prompts, empty]).to(engine.keys.dtype)
    cosines, sines = (
        torch.cat([*(table[first : first + length] for length in lengths), table[:1].expand(padding, -1)])
        for table in tables
    )
    ends = torch.tensor(lengths).cumsum(0)
    spans = [
        _Span(slot, slice(end - length, end), first, first + length)
        for slot, end, length in zip(slots, ends.tolist(), lengths, strict=True)
    ]
    for layer, keys, values in zip(layers, engine.keys, engine.values, strict=True):
        hidden = _run_layer(layer, engine.shape, hidden, (cosines, sines), keys, values, spans)
    return hidden[ends - 1]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in fp32; x [...,width] and weight [width], returned in the dtype of x."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def _padding_rows(rows: int) -> int:
    """Rows to add so that products have few sizes: PyTorch keeps half a megabyte for each size."""
    step = 32 if rows < 512 else 128
    return -rows % step


def _run_layer(
    layer: EngineLayer,
    shape: EngineShape,
    hidden: Tensor,
    angles: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    spans: Sequence[_Span],
) -> Tensor:
    """One layer: hidden [N,width], which may be overwritten, -> [N,width].

    angles: cosines and sines of the rows, [N,head_size/2] each; keys, values: the layer's cache
    [slots,kv_heads,capacity,head_size], written at the spans.
    """
    normed = rms_norm(hidden, layer.input_norm, shape.eps)
    mixed = _attend(layer, shape, normed, angles, keys, values, spans)
    hidden = _add_product(hidden, mixed, layer.o, layer.o_bias)
    normed = rms_norm(hidden, layer.post_norm, shape.eps)
    return _add_product(hidden, _gated(normed, layer), layer.down, layer.down_bias)


def _attend(
    layer: EngineLayer,
    shape: EngineShape,
    normed: Tensor,
    angles: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    spans: Sequence[_Span],
) -> Tensor:
    """Causal attention of each prompt: normed [N,width] -> heads side by side [N,heads*head_size]."""
    q_width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    biases = (None, None, None) if layer.bias is None else layer.bias.split((q_width, kv_width, kv_width))
    q, k, v = (
        multiply(normed, matrix, bias).unflatten(-1, (-1, shape.head_size)).transpose(0, 1)
        for matrix, bias in zip((layer.q, layer.k, layer.v), biases, strict=True)
    )  # [heads,N,head_size]
    q, k = _rotate(q, *angles), _rotate(k, *angles)
    groups = (shape.kv_heads, shape.heads // shape.kv_heads)
    grouped_q = q.unflatten(0, groups)
    mixed = normed.new_zeros(len(normed), q_width)
    out = mixed.view(len(normed), *groups, shape.head_size).permute(1, 2, 0, 3)
    for slot, rows, first, end in spans:
        keys[slot, :, first:end] = k[:, rows]
        values[slot, :, first:end] = v[:, rows]
        seen_keys, seen_values = (
            cache[slot, :, None, :end].expand(*groups, -1, -1) for cache in (keys, values)
        )
        attention(grouped_q[:, :, rows], seen_keys, seen_values, causal_offset=first + 1, out=out[:, :, rows])
    return mixed


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding in fp32: x [h,N,d], channels i and i + d/2 are turned by the angle of their row."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cosines - high * sines, high * cosines + low * sines], -1).to(x.dtype)


def _add_product(hidden: Tensor, x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """hidden + x W^T + bias; hidden may be overwritten."""
    if matrix.scales is not None:
        return quantized_linear(x, matrix, bias, out=hidden, combine="add", run=BLOCK)
    return hidden + multiply(x, matrix, bias)


def _gated(x: Tensor, layer: EngineLayer) -> Tensor:
    """silu(gate(x)) * up(x): x [N,width] -> [N,mlp]."""
    if layer.gate.scales is not None:
        active = quantized_linear(x, layer.gate, layer.gate_bias, activation="silu", run=BLOCK)
        return quantized_linear(x, layer.up, layer.up_bias, out=active, combine="multiply", run=BLOCK)
    active = F.silu(multiply(x, layer.gate, layer.gate_bias), inplace=True)
    return active.mul_(multiply(x, layer.up, layer.up_bias))
