"""The decode engine: one C call a token runs every layer of a qwen2 or llama language model on the CPU.

It knows tensors and sizes, no model folder. Batch 1 to the number of slots; each sequence has a slot of a static
cache, which the caller fills with the prompt's keys (rotated) and values. csrc/include/nanoemox.h describes the call.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..linear.quantized import BLOCK, GROUP, PRECISIONS, Matrix


class EngineLayer(NamedTuple):
    """A transformer layer: seven matrices, two RMSNorm weights [width], biases: that of q, k and v is one tensor."""

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
    """Sizes of the language model and of the cache."""

    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    eps: float
    slots: int = 1
    capacity: int = 1024


class _CMatrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("scales", ctypes.c_void_p)]


class _CLayer(ctypes.Structure):
    _fields_ = [
        *((name, _CMatrix) for name in EngineLayer._fields[:7]),
        *((name, ctypes.c_void_p) for name in EngineLayer._fields[7:]),
    ]


class _CConfig(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("precision", "kv_precision", "head_precision", "dtype", "layers")
        ),
        *((name, ctypes.c_int64) for name in ("width", "mlp", "heads", "kv_heads", "head_size", "vocab")),
        *((name, ctypes.c_int64) for name in ("slots", "capacity", "threads")),
        *((name, ctypes.c_void_p) for name in ("layer", "norm")),
        ("head", _CMatrix),
        *(
            (name, ctypes.c_void_p)
            for name in ("exact_head", "embedding", "cosines", "sines", "keys", "values")
        ),
        ("eps", ctypes.c_double),
    ]


def why_not() -> str:
    """Why there is no decode engine here; "" where there is one."""
    return _native.why_not


class DecodeEngine:
    """Runs a language model token by token on threads of its own. One call at a time; `close` ends the threads."""

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
            norm: the final RMSNorm, [width]; embedding: [vocab,width], fp32 or bf16, the dtype of the cache.
            exact_head: [vocab,width] in the dtype of the embedding: with an int8 head, the best logits come from it.
            cosines, sines: [capacity, head_size/2] by position, fp32.

        Raises:
            RuntimeError: no C++ library. ValueError: shapes or forms that do not fit.
        """
        if _native.library is None:
            raise RuntimeError(f"the decode engine needs the C++ library: {_native.why_not}")
        self.shape, self._handle = shape, None
        dtype = embedding.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"want an embedding in float32 or bfloat16, got {dtype}")
        size = (len(layers), shape.slots, shape.kv_heads, shape.capacity, shape.head_size)
        self.keys, self.values = torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)
        _check(layers, norm, head, embedding, cosines, sines, shape)
        self._held: list[Any] = []  # what the library points to
        forms = [layers[0].q.precision, layers[0].k.precision] if layers else [head.precision] * 2
        table = (_CLayer * len(layers))(*(self._layer(layer) for layer in layers))
        config = _CConfig(
            *(PRECISIONS[form] for form in (*forms, head.precision)), 0 if dtype == torch.float32 else 1, len(layers),
            shape.width, shape.mlp, shape.heads, shape.kv_heads, shape.head_size, shape.vocab, shape.slots,
            shape.capacity, threads or torch.get_num_threads(), ctypes.cast(table, ctypes.c_void_p),
            self._vector(norm), self._matrix(head), None if exact_head is None else self._pointer(exact_head),
            self._pointer(embedding), self._vector(cosines), self._vector(sines), self.keys.data_ptr(),
            self.values.data_ptr(), shape.eps,
        )  # fmt: skip
        self._config = config
        self._logits = torch.empty(shape.slots, shape.vocab)
        self._best = torch.empty(shape.slots, dtype=torch.int64)
        self._handle = _native.engine_create(ctypes.byref(config))

    def _pointer(self, tensor: Tensor) -> int:
        self._held.append(tensor := tensor.detach().contiguous())
        return tensor.data_ptr()

    def _vector(self, tensor: Tensor) -> int:
        return self._pointer(tensor.float())

    def _matrix(self, matrix: Matrix) -> _CMatrix:
        return _CMatrix(
            self._pointer(matrix.data), None if matrix.scales is None else self._pointer(matrix.scales)
        )

    def _layer(self, layer: EngineLayer) -> _CLayer:
        return _CLayer(
            *(self._matrix(matrix) for matrix in layer[:7]),
            *(None if vector is None else self._vector(vector) for vector in layer[7:]),
        )

    def step(
        self,
        tokens: Tensor | Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One token each for B sequences.

        Args:
            tokens: ids [B], or embedded rows [B,width] in a float dtype.
            positions: how many tokens of each sequence the cache holds.
            slots: whose cache; 0 to B-1 if left out.

        Returns:
            logits [B,vocab] fp32, valid until the next step; best [B], the first of the highest logits.

        Raises:
            ValueError: a full cache, a slot or a token that does not exist. RuntimeError: a closed engine.
        """
        if self._handle is None:
            raise RuntimeError("this decode engine is closed")
        B = len(positions)
        if len(tokens) != B or (slots is not None and len(slots) != B):
            raise ValueError(
                f"want as many tokens and slots as positions, got {len(tokens)} tokens, {B} positions"
            )
        rows = tokens if isinstance(tokens, Tensor) and tokens.is_floating_point() else None
        if rows is not None and tuple(rows.shape) != (B, self.shape.width):
            raise ValueError(f"want rows [{B}, {self.shape.width}], got {list(rows.shape)}")
        integers = ctypes.c_int64 * B
        ids = None if rows is not None else integers(*map(int, tokens))
        held = None if rows is None else rows.float().contiguous()
        _native.engine_step(
            self._handle, B, integers(*(slots if slots is not None else range(B))), integers(*positions), ids,
            None if held is None else held.data_ptr(), self._logits.data_ptr(), self._best.data_ptr(),
        )  # fmt: skip
        return self._logits[:B], self._best[:B]

    def close(self) -> None:
        """End the threads and let the weights go."""
        if self._handle is not None:
            _native.library.nx_engine_destroy(self._handle)
            self._handle = None
            self._held = []

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def _check(
    layers: Sequence[EngineLayer], norm: Tensor, head: Matrix, embedding: Tensor, cosines: Tensor, sines: Tensor,
    shape: EngineShape,
) -> None:  # fmt: skip
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    wanted = {
        "q": (queries, shape.width), "k": (keys, shape.width), "v": (keys, shape.width), "o": (shape.width, queries),
        "gate": (shape.mlp, shape.width), "up": (shape.mlp, shape.width), "down": (shape.width, shape.mlp),
        "head": (shape.vocab, shape.width),
    }  # fmt: skip
    both = [(layer.k, layer.v) for layer in layers], [(layer.q, *layer[3:7]) for layer in layers]
    few, rest = ({matrix.precision for held in part for matrix in held} for part in both)
    if len(rest) > 1 or len(few) > 1 or not (few <= rest or few <= {"fp32", "bf16"}):
        raise ValueError(
            "the layers' matrices must share one form, but for keys and values in floating point, got "
            + ", ".join(sorted(few | rest))
        )
    named = [(f"layer {i} {name}", matrix, wanted[name]) for i, layer in enumerate(layers)
             for name, matrix in zip(EngineLayer._fields[:7], layer[:7], strict=True)]  # fmt: skip
    for name, matrix, (rows, columns) in [*named, ("head", head, wanted["head"])]:
        if matrix.precision == "int8_rows":
            raise ValueError(f"{name}: the engine takes int8, not int8_rows")
        data = (rows, columns // 2) if matrix.precision == "int4" else (rows, columns)
        if tuple(matrix.data.shape) != data or not matrix.data.is_contiguous():
            raise ValueError(
                f"{name}: want a contiguous {matrix.precision} {list(data)}, got {list(matrix.data.shape)}"
            )
        scales = {"int8": (rows, columns // BLOCK), "int4": (rows, columns // GROUP)}.get(matrix.precision)
        if scales is not None and (matrix.scales is None or tuple(matrix.scales.shape) != scales):
            raise ValueError(f"{name}: want scales {list(scales)}")
    vectors = {"norm": (norm, (shape.width,)), "embedding": (embedding, (shape.vocab, shape.width))}
    table = (shape.capacity, shape.head_size // 2)
    vectors |= {"cosines": (cosines, table), "sines": (sines, table)}
    for i, layer in enumerate(layers):
        vectors[f"layer {i} input_norm"] = layer.input_norm, (shape.width,)
        vectors[f"layer {i} post_norm"] = layer.post_norm, (shape.width,)
        sizes = {"bias": queries + 2 * keys, "o_bias": shape.width, "gate_bias": shape.mlp, "up_bias": shape.mlp,
                 "down_bias": shape.width}  # fmt: skip
        for name, size in sizes.items():
            if (held := getattr(layer, name)) is not None:
                vectors[f"layer {i} {name}"] = held, (size,)
    for name, (tensor, wide) in vectors.items():
        if tuple(tensor.shape) != wide:
            raise ValueError(f"{name}: want {list(wide)}, got {list(tensor.shape)}")
