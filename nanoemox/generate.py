"""Token by token: the stop rule, sampling and the text of an answer (architecture section 12)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UsageError
from .tokenizer import Tokenizer

STOP = "###"


class Generator(Protocol):
    def start(self, embeds: Tensor) -> tuple[Tensor, Any]: ...
    def step(self, ids: Tensor, state: Any) -> Tensor: ...


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
    """Greedy at temperature 0, else nucleus sampling. It draws on the CPU: a seed means the same on every device."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    _random: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1], got {self.top_p}")
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
            return logits.argmax(-1)
        logits = logits.float()
        chances = ((logits - logits.amax(-1, keepdim=True)).cpu() / self.temperature).softmax(-1)
        ranked, order = chances.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= self.top_p] = 0  # the first token is always kept
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
class Generation:
    ids: list[int]
    text: str
    finish: str  # "stop" or "length"
    seconds: dict[str, float]


@torch.inference_mode()
def generate(
    language: Generator,
    tokenizer: Tokenizer,
    embeds: Tensor,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    stream: Callable[[str], None] | None = None,
) -> Generation:
    """Answer one prompt. embeds [1,L,W]."""
    stop = StopRule(tokenizer)
    feed = TextStream(tokenizer, stream) if stream else None
    started = time.perf_counter()
    logits, state = language.start(embeds)
    if not logits.isfinite().all():
        raise ValueError(
            "the model's outputs are not finite numbers: its weights are damaged or overflow in this dtype"
        )
    token = sampler(logits)
    ids = [int(token)]
    prefilled = time.perf_counter()
    while not (finished := stop(ids)) and len(ids) < max_new_tokens:
        if feed:
            feed.push(ids, done=False)
        token = sampler(language.step(token, state))
        ids.append(int(token))
    if feed:
        feed.push(ids, done=True)
    return Generation(
        ids=ids,
        text=postprocess(tokenizer.decode(ids), tokenizer.bos, tokenizer.eos),
        finish="stop" if finished else "length",
        seconds={"prefill": prefilled - started, "decode": time.perf_counter() - prefilled},
    )
