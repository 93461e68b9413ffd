"""Question and answer of every task, as text (docs/tasks.md section 3).

Every function returns (question, answer). Where a task has several wordings, inference uses the first.
"""

import random
from collections.abc import Sequence

from ..tasks import TASKS

_OPEN = (
    "Which emotions does the person show? List all of them, separated by commas.",
    "List the emotions that can be seen, heard or read here, separated by commas.",
    "In words of your choice, which emotions are present? Separate them by commas.",
    "What is the person feeling? Give every fitting emotion word, separated by commas.",
)
_REASON = (
    "How does the person feel? Give the evidence of the face, the voice and the words.",
    "Explain the emotional state of the person with what is seen, heard and said.",
    "Infer the emotion of the person, and name the clues in each modality.",
)
ORDINALS = (
    "First, the event scenario:", "Second, the emotion of the speaker is",
    "Third, the cause of the emotion:", "Fourth, the goal of the response:",
)  # fmt: skip


def emotion(label: str, candidates: Sequence[str] = ()) -> tuple[str, str]:
    """MER, with candidates or without (docs/tasks.md section 3.2)."""
    task = TASKS["mer"]
    if candidates:
        question = task.ask(candidates)
    else:
        question = (
            f"{task.tag} What does the person most likely feel? Answer in a sentence ending in the emotion."
        )
    return question, f"The emotion of the person is {label}."


def sentiment(label: str, candidates: Sequence[str] | None = None) -> tuple[str, str]:
    """MSA as a choice, by default of positive, negative and neutral (docs/tasks.md section 3.3)."""
    return TASKS["msa"].ask(candidates), f"The sentiment of the person is {label}."


def valence(value: float, low: float, high: float) -> tuple[str, str]:
    """MSA as a number; low and high are the range of the training part (docs/tasks.md section 3.3)."""
    question = f"How positive is the person, from {low:.2f} (most negative) to {high:.2f} (most positive)?"
    return question, f"The valence of the person is {value:.2f}."


def open_labels(labels: str, rng: random.Random) -> tuple[str, str]:
    """OV-MER; `labels` is joined by ", " (docs/tasks.md section 3.4). `rng` draws the wording."""
    task = TASKS["ov-mer"]
    question = task.ask(template=rng.choice((task.question, *_OPEN)))
    return question, f"The emotions of the person are: {labels}."


def reason(description: str, rng: random.Random) -> tuple[str, str]:
    """ERI; the answer is the stored description (docs/tasks.md section 3.5). `rng` draws the wording."""
    task = TASKS["eri"]
    question = task.ask(template=rng.choice((task.question, *_REASON)))
    return question, description


def intent(label: str, candidates: Sequence[str]) -> tuple[str, str]:
    """MIR; the answer is the label alone, as annotated (docs/tasks.md section 3.6)."""
    return TASKS["mir"].ask(candidates), label


def speaker_emotion(label: str, context: str, current: str) -> tuple[str, str]:
    """MER about the speaker of a dialogue; `current` is what the speaker says (docs/tasks.md section 3.2)."""
    tag = TASKS["mer"].tag
    question = f"{tag} Context: {context} The speaker says: {current} What is the emotion of the speaker?"
    return question, f"The emotion of the speaker is {label}."


def reply(
    chain: Sequence[str],
    response: str,
    context: str | None = None,
    current: str | None = None,
    question: str | None = None,
) -> tuple[str, str]:
    """ERG: the chain of empathy inside <think>, then the reply (docs/tasks.md section 3.7).

    Args:
        chain: event, emotion, cause and goal.
        response: the reply.
        context, current: the situation and the current words of the speaker, for the question; each optional.
        question: replaces the task's own instruction.
    """
    return empathy_question(context, current, question), chain_text(chain, response)


def empathy_question(
    context: str | None = None, current: str | None = None, question: str | None = None
) -> str:
    """The question of ERG; arguments as in `reply`."""
    parts = (("Context:", context), ("The speaker says:", current))
    situation = "".join(f"{label} {text} " for label, text in parts if text)
    return situation + TASKS["erg"].ask(template=question)


def chain_text(chain: Sequence[str], response: str) -> str:
    """The answer of ERG: four lines, each opened by its ordinal, and the reply."""
    lines = "\n".join(f"{opening} {text.rstrip('.')}." for opening, text in zip(ORDINALS, chain, strict=True))
    return f"<think>{lines}</think>\n {response}"
