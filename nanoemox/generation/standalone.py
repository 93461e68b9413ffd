"""A language model alone: any Hugging Face folder of a qwen2 or llama model, read and decoded."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..bundle.meta import without_parameters
from ..bundle.tensors import audit, index, read_into
from ..errors import CheckpointError, UsageError
from ..modules.language import KINDS, LanguageModel
from .generate import Request, Tokens, generate
from .sampler import Sampler


class Language:
    """What `nanoemox.load_language` gives.

    Attributes:
        model: `embed`, `start`, `step`, `keep`, `end`: the reference, or the decode engine.
        config: Hugging Face's configuration.
        tokenizer: tokenizer.json of the folder (tokenizers.Tokenizer), or None.
        eos_ids: what ends a text, as generation_config.json or config.json has it.
    """

    def __init__(self, model: nn.Module, folder: Path, config: Any):
        self.model: Any = model
        self.config = config
        file = folder / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None
        settings = folder / "generation_config.json"
        values = _json(settings) if settings.is_file() else {}
        eos = values.get("eos_token_id", getattr(config, "eos_token_id", None))
        self.eos_ids: tuple[int, ...] = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

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
        """Continue prompts, up to 16 and more side by side, of any lengths.

        Args:
            prompts: ids [B,L] or [L], lists of ids, or embedded rows: [B,L,W], [L,W] or a list of [L,W].
            temperature: 0 is greedy; above it, a draw among the `top_k` likeliest (0: all) within `top_p`. With a
                seed, prompt i draws with seed + i.
            eos_ids: what ends a text (kept in the result); default the folder's own, () for nothing.
            stream: called with the number of a prompt and its next id, as they come.
            cancelled: asked between tokens; once it says True everything ends there.

        Returns:
            The new ids of every prompt, an empty list only where there is no prompt.

        Raises:
            ValueError: an empty prompt, an id that does not exist, more positions than the model has.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        embedded = self._embedded(prompts)
        room = self.config.max_position_embeddings
        for i, prompt in enumerate(embedded):
            if not len(prompt) or len(prompt) + max_new_tokens > room:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens and {max_new_tokens} more are wanted: want at least one, and "
                    f"no more than the {room} positions of the model together"
                )
        ends = set(self.eos_ids if eos_ids is None else eos_ids)
        requests = [
            Request(
                prompt,
                max_new_tokens,
                lambda ids: ids[-1] in ends,
                Sampler(temperature, top_p, None if seed is None else seed + i, top_k),
                None if stream is None else lambda ids, done, i=i: stream(i, ids[-1]),  # type: ignore[misc]
            )
            for i, prompt in enumerate(embedded)
        ]
        results: list[Tokens] = generate(self.model, requests, cancelled=cancelled) if requests else []
        return [result.ids for result in results]

    @torch.inference_mode()
    def _embedded(self, prompts: Any) -> list[Tensor]:
        if not isinstance(prompts, Tensor):
            prompts = list(prompts)
            if prompts and isinstance(prompts[0], int):
                prompts = [prompts]
        elif prompts.ndim == (2 if prompts.is_floating_point() else 1):
            prompts = prompts[None]
        out = []
        probe = self.model.embed(torch.zeros(1, dtype=torch.long, device=self.device))
        for prompt in prompts:
            rows = (
                torch.as_tensor(prompt, device=self.device)
                if len(prompt)
                else torch.zeros(0, dtype=torch.long)
            )
            if not rows.is_floating_point():
                if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.config.vocab_size:
                    raise ValueError(
                        f"ids must lie in 0 to {self.config.vocab_size - 1}, got {rows.tolist()[:8]}"
                    )
                rows = self.model.embed(rows.long()) if len(rows) else probe[:0]
            if rows.ndim != 2 or rows.shape[1] != self.config.hidden_size:
                raise ValueError(f"want ids or rows [L, {self.config.hidden_size}], got {list(rows.shape)}")
            out.append(rows.to(probe.dtype))
        return out

    @property
    def device(self) -> torch.device:
        held = next(self.model.parameters(), None)
        return torch.device("cpu") if held is None else held.device


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read as a JSON object ({error})") from error


def read_config(folder: Path) -> Any:
    """Hugging Face's configuration of a folder. Raises CheckpointError."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no config.json in it; the Hugging Face folder of a language model has one"
        )
    values = _json(path)
    kind = values.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(f"{path}: model_type {kind!r} is not supported, {' and '.join(KINDS)} are")
    try:
        return KINDS[kind][0].from_dict(values)
    except Exception as error:  # transformers checks with kinds of its own
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:300]}") from error


def read_weights(folder: Path, config: Any, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Hugging Face's model with the folder's *.safetensors, mapped where they need no cast. Raises CheckpointError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder}: no *.safetensors in it; other formats are not read, save the model anew"
        )
    entries = index(files)
    try:
        model = without_parameters(lambda: LanguageModel.around(KINDS[config.model_type][1](config)))
    except Exception as error:  # sizes that make no model
        raise CheckpointError(f"{folder / 'config.json'}: these sizes make no model ({error})") from error
    model.tie()
    wanted = {name: tuple(parameter.shape) for name, parameter in model.base.named_parameters()}
    found = {name: entry.shape for name, entry in entries.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)
    audit(found, wanted, str(folder))
    read_into(
        model.base,
        {name: (name,) for name in wanted},
        {name: entries[name] for name in wanted},
        device,
        dtype,
    )
    model.tie()
    return model.to(device)
