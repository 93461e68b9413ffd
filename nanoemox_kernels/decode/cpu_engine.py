"""The decode engine: one C call per token runs every layer of a qwen2 or llama language model on the CPU.

The engine takes tensors and sizes and knows no model folder. A batch has at most as many sequences as the
engine has slots. Each sequence occupies a slot of a static cache, which the caller fills with the keys (after
the rotary embedding) and values of the prompt. csrc/include/nanoemox.h describes the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..linear.quantized import BLOCK, GROUP, PRECISIONS, Matrix


class EngineLayer(NamedTuple):
    """The weights of a transformer layer: seven matrices, two RMSNorm weights [width], and biases.

    `bias` concatenates the biases of q, k and v: [(heads + 2 kv_heads) head_size].
    """

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    input_norm: Tensor
    post_norm: Tensor
    bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True)
class EngineShape:
    """Sizes of the language model and of the cache.

    Args:
        width: of the residual stream.
        mlp: hidden width of the MLP.
        heads, kv_heads, head_size: query heads, key-value heads and the width of a head.
        vocab: tokens of the vocabulary.
        eps: of the RMSNorms.
        slots: sequences that the cache holds.
        capacity: tokens per sequence that the cache holds.
    """

    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    eps: float
    slots: int = 1
    capacity: int = 1024


def why_not() -> str:
    """Why the decode engine is not available, or "" if it is."""
    return _native.why_not


class DecodeEngine:
    """Runs a language model token by token on its own threads; `close` ends them. Calls must not overlap.

    Attributes:
        shape: the sizes.
        keys, values: the cache, [layers,slots,kv_heads,capacity,head_size] in the dtype of the embedding.
    """

    def __init__(
        self,
        layers: Sequence[EngineLayer],
        norm: Tensor,
        head: Matrix,
        embedding: Tensor,
        cosines: Tensor,
        sines: Tensor,
        shape: EngineShape,
        *,
        exact_head: Tensor | None = None,
        threads: int | None = None,
    ):
        """
        Args:
            layers: the layers' weights. All matrices have one format; keys and values may be fp32 or bf16.
            norm: the weight of the final RMSNorm, [width].
            head: the vocabulary head, [vocab,width]: fp32, bf16 or int8.
            embedding: [vocab,width], fp32 or bf16; its dtype is the dtype of the cache.
            cosines, sines: the rotary table, [capacity,head_size/2] by position.
            shape: the sizes.
            exact_head: [vocab,width] in the dtype of the embedding: recomputes the best logits of an int8
                head.
            threads: default: as many as PyTorch uses.

        Raises:
            RuntimeError: no C++ library.
            ValueError: shapes or formats that do not fit.
        """
        self._handle: int | None = None
        self._tensors: list[Tensor] = []  # keeps alive what the library points to
        if _native.library is None:
            raise RuntimeError(f"the decode engine needs the C++ library: {_native.why_not}")
        dtype = embedding.dtype
        if dtype not in _native.DTYPES:
            raise ValueError(f"want an embedding in float32 or bfloat16, got {dtype}")
        _check(layers, norm, head, embedding, cosines, sines, shape)
        self.shape = shape
        cache = (len(layers), shape.slots, shape.kv_heads, shape.capacity, shape.head_size)
        self.keys = torch.empty(cache, dtype=dtype)
        self.values = torch.empty(cache, dtype=dtype)
        self._logits = torch.empty(shape.slots, shape.vocab)
        self._best = torch.empty(shape.slots, dtype=torch.int64)
        first = layers[0] if layers else None
        table = _native.array("engine_layer", [self._layer(layer) for layer in layers])
        config = _native.structure(
            "engine_config",
            precision=PRECISIONS[first.q.precision if first else head.precision],
            kv_precision=PRECISIONS[first.k.precision if first else head.precision],
            head_precision=PRECISIONS[head.precision],
            dtype=_native.DTYPES[dtype],
            layers=len(layers),
            width=shape.width,
            mlp=shape.mlp,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_size=shape.head_size,
            vocab=shape.vocab,
            slots=shape.slots,
            capacity=shape.capacity,
            threads=threads or torch.get_num_threads(),
            layer=table,
            norm=self._fp32(norm),
            head=self._matrix(head),
            exact_head=None if exact_head is None else self._contiguous(exact_head),
            embedding=self._contiguous(embedding),
            cosines=self._fp32(cosines),
            sines=self._fp32(sines),
            keys=self.keys,
            values=self.values,
            eps=shape.eps,
        )
        self._handle = _native.engine_create(config)

    def _contiguous(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous()
        self._tensors.append(tensor)
        return tensor

    def _fp32(self, tensor: Tensor) -> Tensor:
        return self._contiguous(tensor.float())

    def _matrix(self, matrix: Matrix) -> _native.Structure:
        scales = None if matrix.scales is None else self._contiguous(matrix.scales)
        return _native.structure("matrix", self._contiguous(matrix.data), scales)

    def _layer(self, layer: EngineLayer) -> _native.Structure:
        matrices = [self._matrix(matrix) for matrix in layer[:7]]
        vectors = [None if vector is None else self._fp32(vector) for vector in layer[7:]]
        return _native.structure("engine_layer", *matrices, *vectors)

    def step(
        self,
        tokens: Tensor | Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Process one token of each of B sequences.

        Args:
            tokens: ids [B], or embedded tokens [B,width] in any float dtype.
            positions: number of tokens of each sequence that the cache already holds.
            slots: the cache slot of each sequence; default: 0 to B - 1.

        Returns:
            logits [B,vocab] fp32, overwritten by the next step, and best [B] int64, the first index of the
            highest logit.

        Raises:
            ValueError: the cache is full, or a slot or token does not exist.
            RuntimeError: the engine is closed.
        """
        if self._handle is None:
            raise RuntimeError("this decode engine is closed")
        B = len(positions)
        if len(tokens) != B or (slots is not None and len(slots) != B):
            raise ValueError(
                f"want as many tokens and slots as positions, got {len(tokens)} tokens, {B} positions"
            )
        ids = embedded = None
        if isinstance(tokens, Tensor) and tokens.is_floating_point():
            if tuple(tokens.shape) != (B, self.shape.width):
                raise ValueError(f"want rows [{B}, {self.shape.width}], got {list(tokens.shape)}")
            embedded = tokens.float().contiguous()
        else:
            ids = _native.int64_array([int(token) for token in tokens])
        slot_array = _native.int64_array(range(B) if slots is None else slots)
        rows = None if embedded is None else embedded.data_ptr()
        results = self._logits.data_ptr(), self._best.data_ptr()
        _native.engine_step(self._handle, B, slot_array, _native.int64_array(positions), ids, rows, *results)
        return self._logits[:B], self._best[:B]

    def close(self) -> None:
        """End the threads and release the weights."""
        if self._handle is not None:
            _native.engine_destroy(self._handle)
            self._handle = None
            self._tensors = []

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def _check(
    layers: Sequence[EngineLayer],
    norm: Tensor,
    head: Matrix,
    embedding: Tensor,
    cosines: Tensor,
    sines: Tensor,
    shape: EngineShape,
) -> None:
    """Raise ValueError for weights that do not fit the shape or each other."""
    _check_formats(layers)
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    width, mlp, vocab = shape.width, shape.mlp, shape.vocab
    sizes = {
        "q": (queries, width),
        "k": (keys, width),
        "v": (keys, width),
        "o": (width, queries),
        "gate": (mlp, width),
        "up": (mlp, width),
        "down": (width, mlp),
    }
    for i, layer in enumerate(layers):
        for name, size in sizes.items():
            _check_matrix(f"layer {i} {name}", getattr(layer, name), *size)
    _check_matrix("head", head, vocab, width)
    table = (shape.capacity, shape.head_size // 2)
    _check_tensor("norm", norm, width)
    _check_tensor("embedding", embedding, vocab, width)
    _check_tensor("cosines", cosines, *table)
    _check_tensor("sines", sines, *table)
    lengths = {
        "input_norm": width,
        "post_norm": width,
        "bias": queries + 2 * keys,
        "o_bias": width,
        "gate_bias": mlp,
        "up_bias": mlp,
        "down_bias": width,
    }
    for i, layer in enumerate(layers):
        for name, length in lengths.items():
            vector = getattr(layer, name)
            if vector is not None:
                _check_tensor(f"layer {i} {name}", vector, length)


def _check_formats(layers: Sequence[EngineLayer]) -> None:
    kv_formats = {matrix.precision for layer in layers for matrix in (layer.k, layer.v)}
    formats = {matrix.precision for layer in layers for matrix in (layer.q, *layer[3:7])}
    kv_fits = kv_formats <= formats or kv_formats <= {"fp32", "bf16"}
    if len(formats) > 1 or len(kv_formats) > 1 or not kv_fits:
        raise ValueError(
            "the layers' matrices must share one format, except for keys and values in floating point, got "
            + ", ".join(sorted(kv_formats | formats))
        )


def _check_matrix(name: str, matrix: Matrix, rows: int, columns: int) -> None:
    form = matrix.precision
    if form == "int8_rows":
        raise ValueError(f"{name}: the engine takes int8, not int8_rows")
    size = (rows, columns // 2) if form == "int4" else (rows, columns)
    if tuple(matrix.data.shape) != size or not matrix.data.is_contiguous():
        raise ValueError(f"{name}: want a contiguous {form} {list(size)}, got {list(matrix.data.shape)}")
    group = {"int8": BLOCK, "int4": GROUP}.get(form)
    if group is None:
        return
    scales = (rows, columns // group)
    if matrix.scales is None or tuple(matrix.scales.shape) != scales:
        raise ValueError(f"{name}: want scales {list(scales)}")


def _check_tensor(name: str, tensor: Tensor, *size: int) -> None:
    if tuple(tensor.shape) != size:
        raise ValueError(f"{name}: want {list(size)}, got {list(tensor.shape)}")
