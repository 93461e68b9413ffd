"""Questions about one clip: what is asked, how long an answer may be, and the replies that are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import InputError, UsageError
from ..tasks import Reply, Task
from .generate import Generator, Request, Tokens, generate
from .sampler import Sampler
from .stop import StopRule, TextStream, postprocess
from .tokenizer import Tokenizer


@dataclass
class TaskRequest:
    """A task about one clip.

    Attributes:
        question: replaces the task's question, if given.
        labels: replaces the task's candidates, if given.
        max_new_tokens: None is the task's own limit.
    """

    task: Task
    question: str | None = None
    labels: list[str] | None = None
    max_new_tokens: int | None = None
    sampler: Sampler = field(default_factory=Sampler)

    @property
    def limit(self) -> int:
        """Tokens that the answer may have. Raises UsageError for a limit below 1."""
        limit = self.task.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        if limit < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {limit}")
        return limit

    def reply(
        self,
        tokens: Tokens,
        tokenizer: Tokenizer,
        *,
        modalities: dict[str, list[str]],
        gates: list[float] | None,
        face_attention: list[list[list[float]]] | None,
        seconds: dict[str, float],
    ) -> Reply:
        """Read the generated tokens as the task's answer. `seconds`: of the stages before generation."""
        text = postprocess(tokenizer.decode(tokens.ids), tokenizer.bos, tokenizer.eos)
        parsed = self.task.parse(text, self.labels or self.task.labels)
        return Reply(
            task=self.task.name,
            text=text,
            labels=parsed.labels,
            reply=parsed.reply,
            chain=parsed.chain,
            tokens=len(tokens.ids),
            finish=tokens.finish,
            modalities=modalities,
            gates=gates,
            face_attention=face_attention,
            seconds={**seconds, **tokens.seconds},
        )


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many ids all prompts begin with; at least one id of each prompt is not counted."""
    length = 0
    for column in zip(*(ids[:-1] for ids in prompts), strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def check_lengths(prompts: Sequence[Sequence[int]], limits: Sequence[int], positions: int) -> None:
    """Raises InputError for a prompt that leaves no room for its answer among the model's positions."""
    for ids, limit in zip(prompts, limits, strict=True):
        if len(ids) + limit > positions:
            raise InputError(
                f"the prompt has {len(ids)} tokens and {limit} more are wanted, but the language model holds "
                f"{positions}: shorten the subtitle or the question, or ask for fewer tokens"
            )


def generate_answers(
    language: Generator,
    tokenizer: Tokenizer,
    tasks: Sequence[TaskRequest],
    prompts: Sequence[Sequence[int]],
    embeds: Sequence[Tensor],
    *,
    stream: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Tokens]:
    """Decode the answers of several tasks as one batch; what their prompts share is read once.

    Args:
        prompts: ids of every task's prompt.
        embeds: the same prompts embedded, [L,W] each.
        stream: gets the text of the first answer in pieces.
        cancelled: called between tokens; True ends all answers.
    """
    shared = common_prefix_length(prompts) if len(tasks) > 1 else 0
    stop = StopRule(tokenizer)
    requests = [
        Request(embed[shared:], task.limit, stop, task.sampler)
        for embed, task in zip(embeds, tasks, strict=True)
    ]
    if stream is not None:
        requests[0].watch = TextStream(tokenizer, stream).push
    prefix = embeds[0][:shared] if shared else None
    return generate(language, requests, shared=prefix, cancelled=cancelled)
