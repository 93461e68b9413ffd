"""The language model on the decode engine: prefill through PyTorch, then one C call a token, over one copy of weights.

Architecture section 9; any qwen2 or llama configuration. A matrix is bf16, fp32, int8 or int4 and serves both phases.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels.decode_engine import (
    DecodeEngine,
    EngineLayer,
    EngineShape,
    Matrix,
    multiply,
    quantize_int4,
    quantize_int8,
    why_not,
)

from ..config import LanguageConfig
from .weights import let_go

_ROOM = 1024  # positions that a cache starts with


class Decoding:
    """Sequences under way: how many tokens of each the cache holds."""

    def __init__(self, positions: list[int]):
        self.positions = positions


class EngineLanguage(nn.Module):
    """What the model asks of a language model (`embed`, `start`, `step`), for inference on a CPU."""

    def __init__(
        self,
        config: LanguageConfig,
        layers: list[EngineLayer],
        norm: Tensor,
        head: Matrix,
        embedding: Tensor,
        rotary: Callable[[int], tuple[Tensor, Tensor]],
        exact_head: Tensor | None = None,
    ):
        """
        Args:
            rotary: number of positions -> cosines, sines [positions, head_size/2], fp32.
            exact_head: the head as it was before it was quantised.
        """
        super().__init__()
        self.config, self.layers, self.norm, self.head, self.embedding = config, layers, norm, head, embedding
        self.rotary, self.exact_head = rotary, exact_head
        self.engine: DecodeEngine | None = None

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [...,hidden_size]."""
        return F.embedding(ids, self.embedding)

    def start(self, embeds: Tensor) -> tuple[Tensor, Decoding]:
        """Prompt embeddings [B,L,hidden_size] -> logits of the last position [B,vocab], state for `step`."""
        B, L, _ = embeds.shape
        engine = self._room(B, L + 1)
        cosines, sines = (t[:L] for t in self.tables)
        hidden = embeds
        for index, layer in enumerate(self.layers):
            hidden = self._layer(layer, hidden, cosines, sines, engine.keys[index, :B], engine.values[index, :B])
        last = self._rms_norm(hidden[:, -1], self.norm)
        exact = self.exact_head if self.exact_head is not None else self.head.data
        return F.linear(last, exact), Decoding([L] * B)

    def step(self, ids: Tensor, state: Decoding) -> Tensor:
        """One more token each: ids [B] -> logits [B,vocab] in fp32."""
        engine = self._room(len(state.positions), max(state.positions) + 1)
        logits, _ = engine.step(ids.tolist(), state.positions)
        state.positions = [position + 1 for position in state.positions]
        return logits

    def _room(self, slots: int, positions: int) -> DecodeEngine:
        """The engine with room for that many; a cache that is too small moves into one of twice the length."""
        held = self.engine
        if held is not None and held.shape.slots >= slots and held.shape.capacity >= positions:
            return held
        capacity, most = _ROOM, 1
        if held is not None:
            capacity, most = held.shape.capacity, held.shape.slots
        while capacity < positions:
            capacity *= 2
        c = self.config
        shape = EngineShape(
            c.hidden_size, c.mlp_size, c.heads, c.kv_heads, c.head_dim, c.vocab_size, c.rms_norm_eps,
            max(slots, most), capacity,
        )  # fmt: skip
        self.tables = self.rotary(capacity)
        self.engine = DecodeEngine(
            self.layers, self.norm, self.head, self.embedding, *self.tables, shape, exact_head=self.exact_head
        )
        if held is not None:
            for new, old in ((self.engine.keys, held.keys), (self.engine.values, held.values)):
                new[:, : old.shape[1], :, : old.shape[3]] = old
            held.close()
        return self.engine

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight.float(), self.config.rms_norm_eps).to(x.dtype)

    def _layer(
        self, layer: EngineLayer, hidden: Tensor, cosines: Tensor, sines: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """hidden [B,L,W] -> [B,L,W]; keys and values [B,kv_heads,capacity,head_size] take the prompt's."""
        c, L = self.config, hidden.shape[1]
        y = self._rms_norm(hidden, layer.input_norm)
        sizes = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
        biases = (None, None, None) if layer.bias is None else layer.bias.split(sizes)
        q, k, v = (
            multiply(y, matrix, bias).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
            for matrix, bias in zip((layer.q, layer.k, layer.v), biases, strict=True)
        )
        q, k = _rotate(q, cosines, sines), _rotate(k, cosines, sines)
        keys[:, :, :L], values[:, :, :L] = k, v
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.heads != c.kv_heads)
        hidden = hidden + multiply(mixed.transpose(1, 2).flatten(2), layer.o)
        y = self._rms_norm(hidden, layer.post_norm)
        active = F.silu(multiply(y, layer.gate), inplace=True).mul_(multiply(y, layer.up))
        return hidden + multiply(active, layer.down)


def engine_language(config: LanguageConfig, base: Any, quantize: str | None = None) -> EngineLanguage:
    """From Hugging Face's model without adapters, which is left hollow: its matrices are handed over one by one."""
    forms: dict[str | None, Callable[[Tensor], Matrix]] = {
        None: Matrix,
        "int8": quantize_int8,
        "int4": quantize_int4,
    }
    form = forms[quantize]

    def take(linear: Any) -> Matrix:
        weight, linear.weight = linear.weight.detach(), None
        matrix = form(weight)
        if quantize is not None:
            let_go(weight)
        return matrix

    layers = []
    for layer in base.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        bias = None if parts[0].bias is None else torch.cat([part.bias.detach() for part in parts])
        matrices = [take(part) for part in (*parts, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        norms = [norm.weight.detach() for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        layers.append(EngineLayer._make([*matrices, *norms, bias]))
    embedding, head = (part.weight.detach() for part in (base.model.embed_tokens, base.lm_head))
    turn = base.model.rotary_emb

    def rotary(positions: int) -> tuple[Tensor, Tensor]:
        both = turn(torch.zeros(1), torch.arange(positions)[None])
        cosines, sines = (t[0, :, : config.head_dim // 2].contiguous() for t in both)
        return cosines, sines

    norm = base.model.norm.weight.detach()
    if quantize is None:
        return EngineLanguage(config, layers, norm, Matrix(head), embedding, rotary)
    return EngineLanguage(config, layers, norm, quantize_int8(head), embedding, rotary, exact_head=head)


def why_no_engine(config: LanguageConfig, device: torch.device, quantize: str | None) -> str:
    """Why the language model stays Hugging Face's; "" where the engine runs it."""
    if device.type != "cpu":
        return "the decode engine is for the CPU"
    if missing := why_not():
        return missing
    if config.head_dim % 2:
        return f"head_dim {config.head_dim} is odd"
    odd = [size for size in (config.hidden_size, config.mlp_size, config.heads * config.head_dim) if size % 64]
    if quantize is not None and odd:
        return f"{quantize} wants widths that 64 divides, not {odd[0]}"
    return ""


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x [B,h,L,d]: pairs (i, i + d/2) turned by their position's angle, in fp32."""
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1).to(x.dtype)
