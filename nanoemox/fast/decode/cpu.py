"""The language model on the decode engine: prefill through PyTorch, then one C call a token, over one copy of
weights.

Architecture section 9; any qwen2 or llama configuration. A matrix is bf16, fp32, int8 or int4 and serves both
phases."""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels.decode.cpu_engine import DecodeEngine, EngineLayer, EngineShape
from nanoemox_kernels.linear.quantized import BLOCK, Matrix, multiply, quantized_linear
from nanoemox_kernels.ops.attn.native import attention

from ...errors import UsageError
from .smoothing import Smoothed

_ROOM = 1024  # positions that a cache starts with

Rotary = Callable[[int], tuple[Tensor, Tensor]]


@dataclass
class Decoding:
    """Sequences under way: the slot of each in the cache, and how many tokens of it that holds.

    One that nobody refers to any more gives its slots back, as `end` does.
    """

    slots: list[int]
    positions: list[int]


class EngineLanguage(nn.Module):
    """What the model asks of a language model, for inference on a CPU.

    Calls from several threads take turns.
    """

    def __init__(
        self, shape: EngineShape, layers: list[EngineLayer], norm: Tensor, head: Matrix, embedding: Tensor,
        rotary: Rotary, exact_head: Tensor | None = None, smoothed: Sequence[Smoothed] = (),
    ):  # fmt: skip
        """
        Args:
            rotary: number of positions -> cosines, sines [positions, head_size/2], fp32.
            exact_head: the head as it was before it was quantised.
            smoothed: by what each layer was multiplied before it was quantised.
        """
        super().__init__()
        self.shape, self.layers, self.norm, self.head, self.embedding = shape, layers, norm, head, embedding
        self.rotary, self.exact_head, self.smoothed = rotary, exact_head, smoothed
        self.engine: DecodeEngine | None = None
        self.tables: tuple[Tensor, ...] = ()  # cosines and sines of every position of the cache
        self._taken: set[int] = set()
        self._turn = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are held."""
        layers = [part.nbytes for layer in self.layers for part in layer if part is not None]
        tensors = {t.data_ptr(): t.nbytes for t in (self.norm, self.embedding, self.exact_head, self.head.data)
                   if t is not None}  # fmt: skip
        return (
            sum(layers) + sum(tensors.values()) + (0 if self.head.scales is None else self.head.scales.nbytes)
        )

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [...,hidden_size]."""
        return F.embedding(ids, self.embedding)

    def start(
        self, prompts: Sequence[Tensor] | Tensor, shared: Tensor | None = None
    ) -> tuple[Tensor, Decoding]:
        """Embedded prompts, [L,hidden_size] each, all behind the same `shared` [P,hidden_size] if there is
        one.

        Returns logits of the last positions [B,vocab] and what `step` goes on from; `end` gives its slots
        back."""
        lengths, P = [len(prompt) for prompt in prompts], 0 if shared is None else len(shared)
        with self._turn:
            state = self._take(len(lengths), P + max(lengths) + 1)
            assert self.engine is not None
            try:
                if shared is not None and P:
                    self._prefill([shared], [state.slots[0]], 0)
                    for cache in (self.engine.keys, self.engine.values):
                        cache[:, state.slots[1:], :, :P] = cache[:, state.slots[:1], :, :P]
                logits = self._prefill(list(prompts), state.slots, P)
            except BaseException:
                self.end(state)
                raise
            state.positions[:] = [P + length for length in lengths]
            return logits, state

    def step(self, ids: Tensor, state: Decoding) -> Tensor:
        """One more token each: ids [B] -> logits [B,vocab] in fp32."""
        with self._turn:
            engine = self._room(0, max(state.positions) + 1)
            logits, _ = engine.step(ids.tolist(), state.positions, state.slots)
            state.positions[:] = [position + 1 for position in state.positions]
            # Another thread's step writes where this one wrote. PyTorch's copy would start its threads.
            return torch.from_numpy(logits.numpy().copy())

    def keep(self, state: Decoding, rows: list[int]) -> None:
        """Go on with some of the sequences; the slots of the others are given back."""
        with self._turn:
            _give_back(self._taken, [slot for row, slot in enumerate(state.slots) if row not in rows])
            for held in (state.slots, state.positions):
                held[:] = [held[row] for row in rows]

    def end(self, state: Decoding) -> None:
        self.keep(state, [])

    def _take(self, count: int, positions: int) -> Decoding:
        free = [slot for slot in range(len(self._taken) + count) if slot not in self._taken][:count]
        self._room(max(free) + 1, positions)
        self._taken |= set(free)
        state = Decoding(free, [0] * count)
        weakref.finalize(state, _give_back, self._taken, state.slots)
        return state

    def _room(self, slots: int, positions: int) -> DecodeEngine:
        """The engine with room for that many; a cache that is too small moves into a larger one."""
        held = self.engine
        if held is not None and held.shape.slots >= slots and held.shape.capacity >= positions:
            return held
        capacity = _ROOM if held is None else held.shape.capacity
        while capacity < positions:
            capacity *= 2
        shape = EngineShape(**{**self.shape.__dict__, "slots": max(slots, held.shape.slots if held else 1),
                               "capacity": capacity})  # fmt: skip
        self.tables = self.rotary(capacity)
        self.engine = DecodeEngine(
            self.layers, self.norm, self.head, self.embedding, *self.tables, shape, exact_head=self.exact_head
        )
        if held is not None:
            for new, old in ((self.engine.keys, held.keys), (self.engine.values, held.values)):
                new[:, : old.shape[1], :, : old.shape[3]] = old
            held.close()
        return self.engine

    def _prefill(self, prompts: list[Tensor], slots: list[int], first: int) -> Tensor:
        """Prompts [L,hidden_size] at positions `first` and on -> logits of the last positions [B,vocab].

        Products see the rows of all prompts together, attention each prompt alone.
        """
        assert self.engine is not None
        lengths = [len(prompt) for prompt in prompts]
        spare = _spare(sum(lengths))
        hidden = torch.cat([*prompts, prompts[0].new_zeros(spare, prompts[0].shape[1])]).to(
            self.embedding.dtype
        )
        angles = [
            torch.cat([*(t[first : first + L] for L in lengths), t[:1].expand(spare, -1)])
            for t in self.tables
        ]
        spans = [(slot, first + L) for slot, L in zip(slots, lengths, strict=True)]
        for layer, keys, values in zip(self.layers, self.engine.keys, self.engine.values, strict=True):
            hidden = self._layer(layer, hidden, angles, keys, values, first, spans)
        ends = torch.tensor(lengths).cumsum(0) - 1
        last = self._rms_norm(hidden[ends], self.norm)
        return F.linear(last, self.exact_head if self.exact_head is not None else self.head.data)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight.float(), self.shape.eps).to(x.dtype)

    def _layer(
        self, layer: EngineLayer, hidden: Tensor, angles: list[Tensor], keys: Tensor, values: Tensor, first: int,
        spans: list[tuple[int, int]],
    ) -> Tensor:  # fmt: skip
        """hidden [N,W] -> [N,W]; keys and values [slots,kv_heads,capacity,head_size] take the prompts'."""
        c = self.shape
        y = self._rms_norm(hidden, layer.input_norm)
        sizes = (c.heads * c.head_size, c.kv_heads * c.head_size, c.kv_heads * c.head_size)
        biases = (None, None, None) if layer.bias is None else layer.bias.split(sizes)
        q, k, v = (
            multiply(y, matrix, bias).unflatten(-1, (-1, c.head_size)).transpose(0, 1)
            for matrix, bias in zip((layer.q, layer.k, layer.v), biases, strict=True)
        )  # [heads,N,head_size]
        q, k = (_rotate(x, *angles) for x in (q, k))
        mixed, row = y.new_zeros(len(hidden), c.heads * c.head_size), 0
        grouped = (c.kv_heads, c.heads // c.kv_heads)
        out = mixed.view(len(hidden), *grouped, c.head_size).permute(1, 2, 0, 3)
        for slot, end in spans:
            here = slice(row, row := row + end - first)
            keys[slot, :, first:end], values[slot, :, first:end] = k[:, here], v[:, here]
            seen_k, seen_v = (t[slot, :, None, :end].expand(*grouped, -1, -1) for t in (keys, values))
            attention(
                q.unflatten(0, grouped)[:, :, here],
                seen_k,
                seen_v,
                causal_offset=first + 1,
                out=out[:, :, here],
            )
        hidden = _added(hidden, mixed, layer.o, layer.o_bias)
        y = self._rms_norm(hidden, layer.post_norm)
        return _added(hidden, _gated(y, layer), layer.down, layer.down_bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EngineLanguage":
        """`.to()` and its kin: another dtype for what is not quantised; sequences under way are lost."""
        embedding = fn(self.embedding)
        if embedding.device.type not in ("cpu", "meta"):
            raise UsageError(
                "the decode engine runs on the CPU alone: load the model again for another device"
            )

        def moved(part: Any) -> Any:
            if isinstance(part, Matrix):
                return part if part.scales is not None else Matrix(fn(part.data))
            return None if part is None else fn(part)

        tied, again = (held is not None and held.data_ptr() == self.embedding.data_ptr()
                       for held in (self.head.data, self.exact_head))  # fmt: skip
        with self._turn:
            self.layers = [EngineLayer._make(map(moved, layer)) for layer in self.layers]
            self.head = Matrix(embedding) if tied else moved(self.head)
            self.exact_head = embedding if again else moved(self.exact_head)
            self.embedding, self.norm = embedding, fn(self.norm)
            if self.engine is not None:
                self.engine.close()
            self.engine = None
        return self


def _give_back(taken: set[int], slots: list[int]) -> None:
    taken.difference_update(slots)


def _spare(rows: int) -> int:
    """Empty rows that fill a prompt up:

    PyTorch keeps half a megabyte for each number of rows that it multiplied.
    """
    step = 32 if rows < 512 else 128
    return -rows % step


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x [h,N,d]: pairs (i, i + d/2) turned by their position's angle, in fp32."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cosines - high * sines, high * cosines + low * sines], -1).to(x.dtype)


def _added(hidden: Tensor, x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """hidden + x W^T; hidden may be overwritten."""
    if matrix.scales is not None:
        return quantized_linear(x, matrix, bias, out=hidden, combine="add", run=BLOCK)
    return hidden + multiply(x, matrix, bias)


def _gated(y: Tensor, layer: EngineLayer) -> Tensor:
    """silu(gate(y)) * up(y)."""
    if layer.gate.scales is not None:
        active = quantized_linear(y, layer.gate, layer.gate_bias, activation="silu", run=BLOCK)
        return quantized_linear(y, layer.up, layer.up_bias, out=active, combine="multiply", run=BLOCK)
    active = F.silu(multiply(y, layer.gate, layer.gate_bias), inplace=True)
    return active.mul_(multiply(y, layer.up, layer.up_bias))
