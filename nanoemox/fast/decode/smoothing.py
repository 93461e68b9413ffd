"""Factors that move large activations into weights before these are quantised.

Columns of a matrix that meet large activations then lose less. Column j of a matrix is multiplied by s_j,
and what produces its input (a norm, or the rows of the matrix before) is divided by it, so that the model
computes the same function. s grows with the size of the column's activations, as in SmoothQuant
(arXiv:2211.10438) and AWQ (arXiv:2306.00978). Random tokens are enough to measure that size, so no data set
is needed. Every s is a power of two, by which floating-point numbers are multiplied without rounding.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_TOKENS = 128
_EXPONENT = 0.25  # of an activation's size; more would harm the other columns of a group
_MAX_FACTOR = 8.0
_NAME = re.compile(r"llama_model\..*\blayers\.(\d+)\..*?(\w+?)(?:_proj)?\.(?:weight|bias)")

Factors = dict[str, Tensor]


class Smoothed(NamedTuple):
    """Factors of a layer by part: q, k, v, o, gate, up, down, input_layernorm, post_attention_layernorm.

    Attributes:
        rows: factors of rows [out], and of the biases of these rows.
        columns: factors of columns [in].
    """

    rows: Factors
    columns: Factors

    def scaled(self, part: str, tensor: Tensor) -> Tensor:
        """Multiply a tensor by the factors of its part.

        Args:
            part: its name.
            tensor: a weight [out,in], a bias [out] or the weight of a norm [out].

        Returns:
            A new tensor of the same shape and dtype; `tensor` itself where the part has no factors.
        """
        rows = self.rows.get(part)
        columns = self.columns.get(part) if tensor.ndim == 2 else None
        if rows is not None:
            row_factors = rows.to(tensor).unflatten(0, (-1, *[1] * (tensor.ndim - 1)))
            tensor = tensor * row_factors
        return tensor if columns is None else tensor * columns.to(tensor)


def scaled(layers: Sequence[Smoothed], name: str, tensor: Tensor) -> Tensor:
    """Multiply an official tensor of any part of the model by its factors.

    Args:
        layers: factors of the language model's layers; empty if it was not smoothed.
        name: official name of the tensor.
        tensor: its value.

    Returns:
        As `Smoothed.scaled`.
    """
    match = _NAME.fullmatch(name)
    if match is None or not layers:
        return tensor
    layer, part = match.groups()
    return layers[int(layer)].scaled(part, tensor)


class Smoothing:
    """Runs random tokens through Hugging Face's qwen2 or llama model, layer by layer.

    Attributes:
        layers: factors of the layers so far.
    """

    @torch.no_grad()
    def __init__(self, base: Any):
        """base: the model, whose layers are passed to `next` in order."""
        config, model = base.config, base.model
        generator = torch.Generator().manual_seed(0)
        length = min(_TOKENS, config.max_position_embeddings)
        ids = torch.randint(config.vocab_size, (1, length), generator=generator)
        self._hidden = model.embed_tokens(ids)
        self._angles = model.rotary_emb(self._hidden, torch.arange(length)[None])
        self.layers: list[Smoothed] = []

    @torch.no_grad()
    def next(self, layer: Any) -> Smoothed:
        """Run the tokens through the next layer and return its factors.

        layer: with all weights and adapters.
        """
        attention, mlp = layer.self_attn, layer.mlp
        measured = {"qkv": attention.q_proj, "o": attention.o_proj, "up": mlp.up_proj, "down": mlp.down_proj}
        with _record_sizes(measured) as sizes:
            self._hidden = layer(self._hidden, position_embeddings=self._angles)
        before_attention, before_mlp, inside_mlp = (_factors(sizes[name]) for name in ("qkv", "up", "down"))
        # One row of values serves all queries of a group.
        by_query = sizes["o"].unflatten(0, (-1, attention.num_key_value_groups, attention.head_dim))
        by_group = _factors(by_query.mean(1, keepdim=True))
        columns = dict.fromkeys("qkv", before_attention)
        columns |= dict.fromkeys(("gate", "up"), before_mlp)
        columns |= {"o": by_group.expand_as(by_query).flatten(), "down": inside_mlp}
        rows = {
            "input_layernorm": 1 / before_attention,
            "v": 1 / by_group.flatten(),
            "post_attention_layernorm": 1 / before_mlp,
            "up": 1 / inside_mlp,
        }
        smoothed = Smoothed(rows, columns)
        self.layers.append(smoothed)
        return smoothed


def _factors(sizes: Tensor) -> Tensor:
    """log2 of the size of activations by column -> powers of two around 1."""
    exponents = ((sizes - sizes.mean()) * _EXPONENT).round()
    return torch.exp2(exponents).clamp(1 / _MAX_FACTOR, _MAX_FACTOR)


@contextmanager
def _record_sizes(linears: Mapping[str, nn.Module]) -> Iterator[Factors]:
    """Record the inputs of linear layers: log2 of the root mean square of every column, by layer."""
    sizes: Factors = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean_square = inputs[0].float().flatten(0, -2).square().mean(0)
            sizes[name] = mean_square.clamp_min(1e-24).log2() / 2

        return record

    handles = [linear.register_forward_pre_hook(recorder(name)) for name, linear in linears.items()]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
