"""Token by token: the stop rule, sampling and the text of an answer (architecture section 12)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .sampler import Sampler


class Generator(Protocol):
    """A language model, step by step; a state holds several sequences."""

    def start(self, prompts: Sequence[Tensor], shared: Tensor | None = None) -> tuple[Tensor, Any]: ...
    def step(self, ids: Tensor, state: Any) -> Tensor: ...
    def keep(self, state: Any, rows: list[int]) -> None: ...
    def end(self, state: Any) -> None: ...


@dataclass
class Request:
    """What is to be generated behind one prompt, embedded [L,W]."""

    prompt: Tensor
    max_new_tokens: int
    stop: Callable[[Sequence[int]], bool]  # whether these ids end it
    sampler: Sampler = field(default_factory=Sampler)
    watch: Callable[[Sequence[int], bool], None] | None = (
        None  # called with the ids so far, and whether that is all
    )


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
