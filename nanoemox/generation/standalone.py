"""A language model alone, with the calls of `nanoemox.load_language`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..errors import InputError, UsageError
from .generate import Request, generate
from .hugging_face import read_json
from .sampler import Sampler


class Language:
    """A language model that was loaded alone, by `nanoemox.load_language`.

    Attributes:
        model: the reference or the decode engine, with `embed` and the calls of a Generator.
        config: Hugging Face's configuration.
        tokenizer: tokenizer.json of the folder (a tokenizers.Tokenizer), or None.
        eos_ids: ids that end a text, from generation_config.json or config.json.
    """

    def __init__(self, model: nn.Module, folder: Path, config: Any):
        self.model: Any = model
        self.config = config
        self.tokenizer = _read_tokenizer(folder)
        self.eos_ids = _read_eos_ids(folder, config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def generate(
        self,
        prompts: Tensor | Sequence[Sequence[int]] | Sequence[int] | Sequence[Tensor],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        eos_ids: Sequence[int] | None = None,
        stream: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[int]]:
        """Continue prompts of any lengths as one batch.

        Args:
            prompts: ids as a tensor [B,L] or [L], as lists of ids or as one list; or embedded rows as a
                floating-point tensor [B,L,W] or [L,W], or a list of [L,W].
            max_new_tokens: length at which a text ends.
            temperature: 0 is greedy; above it, tokens are sampled.
            top_p: sample among the likeliest tokens that together have this probability, in (0, 1].
            top_k: sample among the `top_k` likeliest tokens; 0 is all.
            seed: prompt i samples with seed + i; None differs from run to run.
            eos_ids: ids that end a text and are kept in it; default the folder's own, () for none.
            stream: called with the number of a prompt and its next id, as they come.
            cancelled: called between tokens; True ends all texts.

        Returns:
            The new ids of every prompt.

        Raises:
            InputError: an empty prompt, an id that does not exist, rows of another width, too many tokens.
            UsageError: an option that is out of range.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        embedded = self._embed(prompts)
        self._check_lengths(embedded, max_new_tokens)
        ends = set(self.eos_ids if eos_ids is None else eos_ids)
        requests = [
            Request(
                prompt,
                max_new_tokens,
                stop=lambda ids: ids[-1] in ends,
                sampler=Sampler(temperature, top_p, None if seed is None else seed + i, top_k),
                watch=None if stream is None else _watch(stream, i),
            )
            for i, prompt in enumerate(embedded)
        ]
        if not requests:
            return []
        results = generate(self.model, requests, cancelled=cancelled)
        return [result.ids for result in results]

    def _check_lengths(self, prompts: Sequence[Tensor], max_new_tokens: int) -> None:
        positions = self.config.max_position_embeddings
        for i, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"prompt {i} has 0 tokens, at least one is needed")
            if len(prompt) + max_new_tokens > positions:
                raise InputError(
                    f"prompt {i} has {len(prompt)} tokens and {max_new_tokens} more are asked for, but the "
                    f"model has {positions} positions: shorten the prompt or ask for fewer tokens"
                )

    @torch.inference_mode()
    def _embed(self, prompts: Any) -> list[Tensor]:
        """Every prompt as rows [L,W] in the dtype of the embedding."""
        sample = self.model.embed(torch.zeros(1, dtype=torch.long, device=self.device))
        embedded = []
        for prompt in _split(prompts):
            if not len(prompt):
                rows = sample[:0]
            else:
                rows = torch.as_tensor(prompt, device=self.device)
                if not rows.is_floating_point():
                    rows = self._embed_ids(rows)
            if rows.ndim != 2 or rows.shape[1] != self.config.hidden_size:
                raise InputError(f"want ids or rows [L, {self.config.hidden_size}], got {list(rows.shape)}")
            embedded.append(rows.to(sample.dtype))
        return embedded

    def _embed_ids(self, ids: Tensor) -> Tensor:
        limit = self.config.vocab_size
        if not 0 <= int(ids.min()) <= int(ids.max()) < limit:
            raise InputError(f"ids must lie in 0 to {limit - 1}, got {ids.tolist()[:8]}")
        return self.model.embed(ids.long())


def _split(prompts: Any) -> list[Any]:
    """One or several prompts as a list of prompts."""
    if isinstance(prompts, Tensor):
        dims_of_one = 2 if prompts.is_floating_point() else 1
        return [prompts] if prompts.ndim == dims_of_one else list(prompts)
    prompts = list(prompts)
    return [prompts] if prompts and isinstance(prompts[0], int) else prompts


def _watch(stream: Callable[[int, int], None], number: int) -> Callable[[Sequence[int], bool], None]:
    return lambda ids, done: stream(number, ids[-1])


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    file = folder / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if file.is_file() else None


def _read_eos_ids(folder: Path, config: Any) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    eos = values.get("eos_token_id", getattr(config, "eos_token_id", None))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
