"""The loop over tokens (docs/architecture.md section 12)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError
from .sampler import Sampler


class Generator(Protocol):
    """A language model, step by step. A state holds several sequences, the rows of a batch."""

    def start(self, prompts: Sequence[Tensor], shared: Tensor | None = None) -> tuple[Tensor, Any]:
        """Reads embedded prompts [L,W], of any lengths, each behind `shared` [P,W].

        Returns the logits [B,V] of the next tokens, and the state.
        """

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """Reads one id a row, ids [B]; returns the logits [B,V] of the next tokens."""

    def keep(self, state: Any, rows: list[int]) -> None:
        """Reduces the state to these rows, in this order."""

    def end(self, state: Any) -> None:
        """Frees what the state holds."""


@dataclass
class Request:
    """What to generate behind one prompt.

    Attributes:
        prompt: embedded, [L,W].
        max_new_tokens: length at which the answer ends.
        stop: whether these generated ids end the answer.
        sampler: chooses the next token.
        watch: called after every token with the ids so far and whether they are complete.
    """

    prompt: Tensor
    max_new_tokens: int
    stop: Callable[[Sequence[int]], bool]
    sampler: Sampler = field(default_factory=Sampler)
    watch: Callable[[Sequence[int], bool], None] | None = None


@dataclass
class Tokens:
    """The generated ids of one request.

    Attributes:
        finish: "stop", "length" or "cancelled".
        seconds: "prefill" and "decode": from the start of all requests to the end of this one.
    """

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
    """Generate for all requests as one batch. A request that has ended leaves the batch.

    Args:
        language: the language model.
        requests: at least one.
        shared: [P,W], what stands before every prompt; it is read once.
        cancelled: called before every step; True ends all requests.

    Returns:
        The tokens of every request, in the order of the requests.

    Raises:
        CheckpointError: the first logits are not finite.
        Exception: what a callback raises; it ends all requests.
    """
    started = time.perf_counter()
    logits, state = language.start([request.prompt for request in requests], shared)
    results = [Tokens([], "cancelled", {}) for _ in requests]
    active = list(range(len(requests)))  # the request of each row of the batch
    prefill = 0.0
    try:
        _check_finite(logits)
        while True:
            samples = [requests[i].sampler(logits[row : row + 1]) for row, i in enumerate(active)]
            ids = torch.cat(samples)
            prefill = prefill or time.perf_counter() - started
            for i, id_ in zip(active, ids.tolist(), strict=True):
                request, result = requests[i], results[i]
                result.ids.append(id_)
                finish = _finish(request, result.ids)
                if finish is not None:
                    result.finish = finish
                    result.seconds = {"prefill": prefill, "decode": time.perf_counter() - started - prefill}
                if request.watch:
                    request.watch(result.ids, finish is not None)
            rows = [row for row, i in enumerate(active) if not results[i].seconds]
            if not rows or (cancelled is not None and cancelled()):
                break
            if len(rows) < len(active):
                language.keep(state, rows)
                active = [active[row] for row in rows]
                ids = ids[rows]
            logits = language.step(ids, state)
    finally:
        language.end(state)
    total = time.perf_counter() - started
    for result in results:
        if not result.seconds:  # cancelled
            result.seconds = {"prefill": prefill, "decode": total - prefill}
    return results


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise CheckpointError(
            "the model's outputs are not finite numbers: its weights are damaged or overflow in this dtype"
        )


def _finish(request: Request, ids: Sequence[int]) -> str | None:
    """Why a request ends after these ids; None while it goes on."""
    if request.stop(ids):
        return "stop"
    return "length" if len(ids) >= request.max_new_tokens else None
