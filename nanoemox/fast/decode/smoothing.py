"""Factors that move large activations into weights before those are rounded: columns that matter lose less.

Column j of a matrix is multiplied by s_j, and whatever makes its input (a norm, the rows of the matrix
before) divided by it: the model stays the same function. s grows with the size of the column's activations,
as in SmoothQuant (arXiv:2211.10438) and AWQ (arXiv:2306.00978); random tokens show that size well enough, so
that no data set is needed. Every s is a power of two, by which a floating-point number can be multiplied
without being rounded."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_TOKENS = 128
_POWER = 0.25  # of an activation's size: more of it would spoil the rest of a group of columns
_MOST = 8.0
_NAME = re.compile(r"llama_model\..*\blayers\.(\d+)\..*?(\w+?)(?:_proj)?\.(?:weight|bias)")

Factors = dict[str, Tensor]


class Smoothed(NamedTuple):
    """Factors of a layer by part (q, k, v, o, gate, up, down, the norms):

    of columns, and of rows with their bias.
    """

    rows: Factors
    columns: Factors

    def scaled(self, part: str, tensor: Tensor) -> Tensor:
        """A weight [out,in], a bias [out] or a norm's weight with its factors:

        itself where there are none.
        """
        rows, columns = self.rows.get(part), self.columns.get(part) if tensor.ndim == 2 else None
        if rows is not None:
            tensor = tensor * rows.to(tensor).unflatten(0, (-1, *[1] * (tensor.ndim - 1)))
        return tensor if columns is None else tensor * columns.to(tensor)


def scaled(layers: Sequence[Smoothed], name: str, tensor: Tensor) -> Tensor:
    """The same for an official tensor of any part of the model."""
    found = _NAME.fullmatch(name)
    return layers[int(found[1])].scaled(found[2], tensor) if found and layers else tensor


class Smoothing:
    """Random tokens on their way through Hugging Face's qwen2 or llama model; `layers`:

    what they have found so far.
    """

    @torch.no_grad()
    def __init__(self, base: Any):
        config, model = base.config, base.model
        random, length = torch.Generator().manual_seed(0), min(_TOKENS, config.max_position_embeddings)
        self._hidden = model.embed_tokens(torch.randint(config.vocab_size, (1, length), generator=random))
        self._angles = model.rotary_emb(self._hidden, torch.arange(length)[None])
        self.layers: list[Smoothed] = []

    @torch.no_grad()
    def next(self, layer: Any) -> Smoothed:
        """The factors of the next layer, which holds its weights and adapters still;

        the tokens pass through it.
        """
        attention, mlp = layer.self_attn, layer.mlp
        read = {"qkv": attention.q_proj, "o": attention.o_proj, "up": mlp.up_proj, "down": mlp.down_proj}
        with _sizes(read) as sizes:
            self._hidden = layer(self._hidden, position_embeddings=self._angles)
        before, after, inner = (_factors(sizes[name]) for name in ("qkv", "up", "down"))
        # One row of values serves all queries of a group.
        grouped = sizes["o"].unflatten(0, (-1, attention.num_key_value_groups, attention.head_dim))
        mixed = _factors(grouped.mean(1, keepdim=True))
        columns = dict.fromkeys("qkv", before) | dict.fromkeys(("gate", "up"), after)
        columns |= {"o": mixed.expand_as(grouped).flatten(), "down": inner}
        rows = {"v": 1 / mixed.flatten(), "up": 1 / inner}
        rows |= {"input_layernorm": 1 / before, "post_attention_layernorm": 1 / after}
        self.layers.append(Smoothed(rows, columns))
        return self.layers[-1]


def _factors(sizes: Tensor) -> Tensor:
    """log2 of columns' activations -> powers of two around 1."""
    return torch.exp2(((sizes - sizes.mean()) * _POWER).round()).clamp(1 / _MOST, _MOST)


@contextmanager
def _sizes(parts: dict[str, Any]) -> Iterator[Factors]:
    """Fills a dictionary with the log2 of every column's root mean square in the inputs of linear layers."""
    found: Factors = {}

    def hook(name: str) -> Any:
        def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
            found[name] = inputs[0].float().flatten(0, -2).square().mean(0).clamp_min(1e-24).log2() / 2

        return keep

    handles = [part.register_forward_pre_hook(hook(name)) for name, part in parts.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
