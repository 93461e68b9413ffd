"""The language model on the decode engine: prompts through PyTorch, then one C call a token.

Both read one copy of the weights: bf16, fp32, int8 or int4 matrices of any qwen2 or llama configuration.
Source: docs/architecture.md sections 9 and 22.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels.decode.cpu_engine import DecodeEngine, EngineLayer, EngineShape
from nanoemox_kernels.linear.quantized import Matrix

from ...errors import UsageError
from .prefill import prefill, rms_norm
from .smoothing import Smoothed

_INITIAL_CAPACITY = 1024  # positions of a new cache

Rotary = Callable[[int], tuple[Tensor, Tensor]]


@dataclass
class DecodingState:
    """Sequences that are being continued: slot of each in the cache, and how many tokens of it that holds.

    A state that is no longer referenced releases its slots, as `end` does.
    """

    slots: list[int]
    positions: list[int]


class EngineLanguage(nn.Module):
    """The calls of `LanguagePart` for inference on a CPU. Several threads may call; they take turns.

    Attributes:
        shape: sizes of the model.
        layers, norm, head, embedding: weights.
        exact_head: the head before it was quantised, or None.
        rotary: number of positions -> cosines, sines [positions,head_size/2], fp32.
        rotary_tables: cosines and sines of all positions of the cache.
        smoothed: factors of each layer that were applied before it was quantised.
        engine: with the cache, or None before the first prompt.
    """

    def __init__(
        self,
        shape: EngineShape,
        layers: list[EngineLayer],
        norm: Tensor,
        head: Matrix,
        embedding: Tensor,
        rotary: Rotary,
        exact_head: Tensor | None = None,
        smoothed: Sequence[Smoothed] = (),
    ):
        super().__init__()
        self.shape, self.layers, self.norm, self.head, self.embedding = shape, layers, norm, head, embedding
        self.rotary, self.exact_head, self.smoothed = rotary, exact_head, smoothed
        self.engine: DecodeEngine | None = None
        self.rotary_tables: tuple[Tensor, ...] = ()
        self._used_slots: set[int] = set()
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights; a tensor that serves twice counts once."""
        in_layers = sum(weight.nbytes for layer in self.layers for weight in layer if weight is not None)
        shared = (self.norm, self.embedding, self.exact_head, self.head.data, self.head.scales)
        by_address = {tensor.data_ptr(): tensor.nbytes for tensor in shared if tensor is not None}
        return in_layers + sum(by_address.values())

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [...,width] in the dtype of the embedding."""
        return F.embedding(ids, self.embedding)

    def start(
        self, prompts: Sequence[Tensor] | Tensor, shared: Tensor | None = None
    ) -> tuple[Tensor, DecodingState]:
        """Read prompts.

        Args:
            prompts: embedded, [L,width] each.
            shared: [P,width], what stands before every prompt, or None. It is read once.

        Returns:
            Logits of the last positions [B,vocab] in the dtype of the embedding, and the state for `step`.
        """
        lengths = [len(prompt) for prompt in prompts]
        shared_length = 0 if shared is None else len(shared)
        with self._lock:
            state = self._allocate(len(lengths), shared_length + max(lengths) + 1)
            assert self.engine is not None
            try:
                if shared is not None and shared_length:
                    source, *others = state.slots
                    self._prefill([shared], [source], 0)
                    for cache in (self.engine.keys, self.engine.values):
                        cache[:, others, :, :shared_length] = cache[:, [source], :, :shared_length]
                logits = self._prefill(list(prompts), state.slots, shared_length)
            except BaseException:
                self.end(state)
                raise
            state.positions[:] = [shared_length + length for length in lengths]
            return logits, state

    def step(self, ids: Tensor, state: DecodingState) -> Tensor:
        """One more token of each sequence: ids [B] -> logits [B,vocab] in fp32."""
        with self._lock:
            engine = self._reserve(0, max(state.positions) + 1)
            logits, _ = engine.step(ids.tolist(), state.positions, state.slots)
            state.positions[:] = [position + 1 for position in state.positions]
            # The next step of any thread overwrites the engine's logits. numpy copies them without starting
            # PyTorch's threads.
            return torch.from_numpy(logits.numpy().copy())

    def keep(self, state: DecodingState, rows: list[int]) -> None:
        """Continue with some of the sequences; the slots of the others are released."""
        with self._lock:
            dropped = [slot for row, slot in enumerate(state.slots) if row not in rows]
            _release_slots(self._used_slots, dropped)
            state.slots[:] = [state.slots[row] for row in rows]
            state.positions[:] = [state.positions[row] for row in rows]

    def end(self, state: DecodingState) -> None:
        """Release the slots of all sequences."""
        self.keep(state, [])

    def _allocate(self, count: int, positions: int) -> DecodingState:
        """Slots for `count` sequences of up to `positions` tokens."""
        candidates = range(len(self._used_slots) + count)
        free = [slot for slot in candidates if slot not in self._used_slots][:count]
        self._reserve(max(free) + 1, positions)
        self._used_slots |= set(free)
        state = DecodingState(free, [0] * count)
        weakref.finalize(state, _release_slots, self._used_slots, state.slots)
        return state

    def _reserve(self, slots: int, positions: int) -> DecodeEngine:
        """The engine, with a cache of at least these sizes; a smaller one is copied into a larger one."""
        old = self.engine
        if old is not None and old.shape.slots >= slots and old.shape.capacity >= positions:
            return old
        capacity = _INITIAL_CAPACITY if old is None else old.shape.capacity
        while capacity < positions:
            capacity *= 2
        old_slots = 1 if old is None else old.shape.slots
        shape = replace(self.shape, slots=max(slots, old_slots), capacity=capacity)
        cosines, sines = self.rotary(capacity)
        engine = DecodeEngine(
            self.layers, self.norm, self.head, self.embedding, cosines, sines, shape,
            exact_head=self.exact_head,
        )  # fmt: skip
        if old is not None:
            for target, source in ((engine.keys, old.keys), (engine.values, old.values)):
                target[:, : source.shape[1], :, : source.shape[3]] = source
            old.close()
        self.engine, self.rotary_tables = engine, (cosines, sines)
        return engine

    def _prefill(self, prompts: list[Tensor], slots: list[int], first: int) -> Tensor:
        """Prompts [L,width] from position `first` on -> logits of the last positions [B,vocab]."""
        assert self.engine is not None
        hidden = prefill(prompts, slots, first, self.layers, self.rotary_tables, self.engine)
        normed = rms_norm(hidden, self.norm, self.shape.eps)
        return F.linear(normed, self.head.data if self.exact_head is None else self.exact_head)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EngineLanguage":
        """Moves the weights to another dtype, except quantised ones; sequences under way are lost.

        Raises UsageError for another device.
        """
        embedding = fn(self.embedding)
        if embedding.device.type not in ("cpu", "meta"):
            raise UsageError(
                "the decode engine runs on the CPU alone: load the model again for another device"
            )

        def move(tensor: Tensor) -> Tensor:
            is_tied = tensor.data_ptr() == self.embedding.data_ptr()
            return embedding if is_tied else fn(tensor)

        with self._lock:
            self.layers = [_move_layer(layer, fn) for layer in self.layers]
            self.head = _move_matrix(self.head, move)
            self.exact_head = None if self.exact_head is None else move(self.exact_head)
            self.embedding, self.norm = embedding, fn(self.norm)
            if self.engine is not None:
                self.engine.close()
            self.engine = None
        return self


def _move_matrix(matrix: Matrix, fn: Callable[[Tensor], Tensor]) -> Matrix:
    """Another dtype for a matrix in floating point; a quantised one stays as it is."""
    return Matrix(fn(matrix.data)) if matrix.scales is None else matrix


def _move_layer(layer: EngineLayer, fn: Callable[[Tensor], Tensor]) -> EngineLayer:
    weights: list[Matrix | Tensor | None] = []
    for weight in layer:
        if isinstance(weight, Matrix):
            weights.append(_move_matrix(weight, fn))
        else:
            weights.append(None if weight is None else fn(weight))
    return EngineLayer._make(weights)


def _release_slots(used: set[int], slots: list[int]) -> None:
    """A function, not a method: the finalizer of a state must not refer to the language model."""
    used.difference_update(slots)
