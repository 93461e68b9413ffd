"""Token by token: the stop rule, sampling and the text of an answer (architecture section 12)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UsageError
from .tokenizer import Tokenizer

_LEAST = 1e-30  # of temperature and top_p: less is nothing in fp32, and divides by nothing

STOP = "###"


class Generator(Protocol):
    """A language model, step by step; a state holds several sequences."""

    def start(self, prompts: Sequence[Tensor], shared: Tensor | None = None) -> tuple[Tensor, Any]: ...
    def step(self, ids: Tensor, state: Any) -> Tensor: ...
    def keep(self, state: Any, rows: list[int]) -> None: ...
    def end(self, state: Any) -> None: ...


class StopRule:
    """True once the generated ids end an answer: eos, `###`, or `###` cut in two the ways a tokenizer cuts it."""

    def __init__(self, tokenizer: Tokenizer):
        self.sequences = [[tokenizer.eos_id]]
        self._decode: Callable[[Sequence[int]], str] | None = None
        whole, two, one = (tokenizer.encode(text) for text in (STOP, "a##", "a#"))
        if len(whole) == 1:
            self.sequences.append(whole)
            if len(two) == len(one) == 2:
                self.sequences += [[two[1], one[1]], [one[1], two[1]]]
        else:
            self._decode = tokenizer.decode

    def __call__(self, ids: Sequence[int]) -> bool:
        if any(list(ids[-len(sequence) :]) == sequence for sequence in self.sequences):
            return True
        return self._decode is not None and self._decode(ids[-len(STOP) :]).endswith(STOP)


def postprocess(text: str, bos: str, eos: str) -> str:
    """Decoded new tokens, special tokens kept -> the answer."""
    if bos in text:
        text = text.split(bos)[1]
    text = text.split(eos)[0]
    if STOP in text:
        text = text[: text.rindex(STOP)]
    return text.split("Assistant:")[-1].strip()


@dataclass
class Sampler:
    """Greedy at temperature 0, else a draw from the `top_k` likeliest tokens (0: all), cut where they make up `top_p`.

    It draws on the CPU: a seed means the same on every device.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    _random: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"seed must be a 64-bit integer, got {self.seed}")
        self._random = torch.Generator()
        if self.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [B,V] -> ids [B]."""
        if self.temperature == 0:
            # NumPy, where it can: PyTorch's threads would go on spinning for milliseconds beside the decode engine's.
            if logits.device.type == "cpu" and logits.dtype == torch.float32:
                return torch.from_numpy(logits.detach().numpy().argmax(-1))
            return logits.argmax(-1)
        logits = logits.float()
        chances = ((logits - logits.amax(-1, keepdim=True)).cpu() / max(self.temperature, _LEAST)).softmax(-1)
        ranked, order = chances.sort(-1, descending=True)
        if self.top_k:
            ranked[:, self.top_k :] = 0
            ranked /= ranked.sum(-1, keepdim=True)
        ranked[ranked.cumsum(-1) - ranked >= max(self.top_p, _LEAST)] = 0  # the first token is always kept
        drawn = torch.multinomial(ranked, 1, generator=self._random)
        return order.gather(-1, drawn).squeeze(-1).to(logits.device)


class TextStream:
    """Feeds a callback with the answer as it grows: whole characters, never a part of the stop mark."""

    def __init__(self, tokenizer: Tokenizer, callback: Callable[[str], None]):
        self.tokenizer, self.callback, self.sent = tokenizer, callback, ""

    def push(self, ids: Sequence[int], done: bool) -> None:
        text = postprocess(self.tokenizer.decode(ids), self.tokenizer.bos, self.tokenizer.eos)
        if not done:  # an unfinished character or stop mark, and blanks that may turn out to end the answer
            text = text.rstrip("#\ufffd").rstrip()
        if len(text) > len(self.sent) and text.startswith(self.sent):
            self.callback(text[len(self.sent) :])
            self.sent = text


@dataclass
class Request:
    """What is to be generated behind one prompt, embedded [L,W]."""

    prompt: Tensor
    max_new_tokens: int
    stop: Callable[[Sequence[int]], bool]  # whether these ids end it
    sampler: Sampler = field(default_factory=Sampler)
    watch: Callable[[Sequence[int], bool], None] | None = None  # called with the ids so far, and whether that is all


@dataclass
class Tokens:
    """`finish` is "stop", "length" or "cancelled"; seconds from the start of all requests to the end of this one."""

    ids: list[int]
    finish: str
    seconds: dict[str, float]


@torch.inference_mode()
def generate(
    language: Generator,
    requests: Sequence[Request],
    *,
    shared: Tensor | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Tokens]:
    """Run requests side by side, one step for all of them at a time; those that have ended take no further part.

    Args:
        shared: [P,W], what stands before every prompt: read once.
        cancelled: asked before every step; True ends all that are still under way.

    Raises:
        ValueError: outputs that are not finite. What a callback raises ends the run too.
    """
    started = time.perf_counter()
    logits, state = language.start([request.prompt for request in requests], shared)
    try:
        if not logits.isfinite().all():
            raise ValueError(
                "the model's outputs are not finite numbers: its weights are damaged or overflow in this dtype"
            )
        held = [Tokens([], "cancelled", {}) for _ in requests]
        live, prefill = list(range(len(requests))), 0.0
        while True:
            token = torch.cat([requests[i].sampler(logits[row : row + 1]) for row, i in enumerate(live)])
            prefill = prefill or time.perf_counter() - started
            for i, id_ in zip(live, token.tolist(), strict=True):
                held[i].ids.append(id_)
                request, ids = requests[i], held[i].ids
                if request.stop(ids):
                    held[i].finish = "stop"
                elif len(ids) >= request.max_new_tokens:
                    held[i].finish = "length"
                if held[i].finish != "cancelled":
                    held[i].seconds = {"prefill": prefill, "decode": time.perf_counter() - started - prefill}
                if request.watch:
                    request.watch(ids, held[i].finish != "cancelled")
            rows = [row for row, i in enumerate(live) if held[i].finish == "cancelled"]
            if not rows or (cancelled is not None and cancelled()):
                break
            if len(rows) < len(live):
                language.keep(state, rows)
                live, token = [live[row] for row in rows], token[rows]
            logits = language.step(token, state)
    finally:
        language.end(state)
    total = time.perf_counter() - started
    for one in held:
        one.seconds = one.seconds or {"prefill": prefill, "decode": total - prefill}
    return held
