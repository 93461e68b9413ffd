"""The six tasks: question, labels, and how an answer's text is read (docs/tasks.md sections 1, 3 and 4)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError

POLARITIES = ("positive", "negative", "neutral")
EMOTIONS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
MINTREC2_INTENTS = (
    "acknowledge", "advise", "agree", "apologise", "arrange", "ask for help", "asking for opinions", "care",
    "comfort", "complain", "confirm", "criticize", "doubt", "emphasize", "explain", "flaunt", "greet",
    "inform", "introduce", "invite", "joke", "leave", "oppose", "plan", "praise", "prevent", "refuse",
    "taunt", "thank", "warn",
)  # fmt: skip
# Nouns and near forms that data sets use for the same seven emotions.
_FORMS = {
    "anger": "angry", "disgust": "disgusted", "fear": "fearful", "afraid": "fearful", "happiness": "happy",
    "joy": "happy", "sadness": "sad", "surprise": "surprised",
}  # fmt: skip


@dataclass
class Parsed:
    """What was read from the text of an answer."""

    labels: list[str] = field(default_factory=list)
    reply: str | None = None  # of erg
    chain: list[str | None] | None = (
        None  # of erg: the four lines of the chain of empathy, None where one is missing
    )


@dataclass
class Reply:
    """One answer of the model.

    Attributes:
        task: name of the task.
        text: the answer as generated, without special tokens and the stop mark.
        labels: labels read from the text, in the spelling of the candidates; empty if it names none.
        reply: the reply to the speaker (task erg), else None.
        chain: the four lines of the chain of empathy (task erg), None for a missing line; else None.
        tokens: number of generated tokens.
        finish: "stop" where the answer ended by itself, "length" at `max_new_tokens`, or "cancelled".
        modalities: {"used": [...], "absent": [...]} of frames, face, audio and subtitle.
        gates: weights of the three fusion experts, which sum to 1; None without fusion.
        face_attention: [heads][4 queries][8 frames] weights of the face queries; None without frames.
        seconds: time of the stages "read", "encode", "prefill" and "decode".

    Source: docs/tasks.md section 3; docs/architecture.md sections 7 and 8 for gates and face_attention.
    """

    task: str
    text: str
    labels: list[str]
    reply: str | None
    chain: list[str | None] | None
    tokens: int
    finish: str
    modalities: dict[str, list[str]]
    gates: list[float] | None
    face_attention: list[list[list[float]]] | None
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The attributes as a dict of values for JSON."""
        return dict(self.__dict__)


def check_labels(labels: Sequence[str] | None) -> list[str] | None:
    """The caller's candidates, stripped. Raises UsageError for a bare string and where none is left."""
    if labels is None:
        return None
    candidates = [] if isinstance(labels, str) else [label.strip() for label in labels if label.strip()]
    if not candidates:
        raise UsageError(f"labels must be a list of at least one word, got {labels!r}")
    return candidates


def _whole_word(label: str) -> str:
    """Pattern of a label that is not part of a longer word. Scripts without spaces have no word boundary."""
    before = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", label) else ""
    after = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", label) else ""
    return before + re.escape(label) + after


def pick_label(text: str, labels: Sequence[str]) -> list[str]:
    """The candidate that the text names last, as a whole word in any case; an empty list if it names none."""
    forms = {label.lower(): label for label in labels}
    forms |= {form: forms[label] for form, label in _FORMS.items() if label in forms and form not in forms}
    longest_first = sorted(forms, key=len, reverse=True)
    if not forms:
        return []
    named = re.findall("|".join(map(_whole_word, longest_first)), text.lower())
    return [forms[named[-1]]] if named else []


def split_list(text: str) -> list[str]:
    """Items of `[a, b]`, `['a', 'b']` or `a, b`, spaces and quotes removed (docs/tasks.md section 3.9)."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    items = [part.strip().strip("'\"") for part in text.split(",")]
    return [item for item in items if item]


def parse_label(text: str, labels: Sequence[str]) -> Parsed:
    """One of the candidates (docs/tasks.md sections 3.2 and 3.3)."""
    return Parsed(labels=pick_label(text, labels))


# Verbs that stand before the labels in a sentence.
_SAYS = r"\b(?:is|are|feels?|feeling|seems|include|includes|shows?|express(?:es)?|appears)\b"


def parse_open_labels(text: str, labels: Sequence[str]) -> Parsed:
    """Free labels of one to three words (docs/tasks.md section 3.4).

    They are read from a bracketed list, from a list over lines, or from the end of the last sentence
    (`... is: happy and proud.`).
    """
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    tagged = re.search(r"<answer>(.*?)(?:</answer>|$)", text, flags=re.DOTALL)
    if tagged:
        text = tagged[1]
    text = text.strip().removeprefix(TASKS["ov-mer"].tag).strip()
    brackets = re.findall(r"\[([^\[\]]*)\]", text)
    parts = split_list(brackets[-1]) if brackets else _split_prose(text)
    items = [part.strip(" .!。！\"'*_").lower() for part in parts]
    unique = dict.fromkeys(items)
    return Parsed(labels=[item for item in unique if re.fullmatch(_UP_TO_THREE_WORDS, item)])


_UP_TO_THREE_WORDS = r"[^\W\d_]+(?:[ -][^\W\d_]+){0,2}"


def _split_prose(text: str) -> list[str]:
    """Parts of a list over lines; of the last line, what follows its colon or its verb."""
    lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line) for line in text.splitlines() if line.strip()]
    if lines:
        last = lines[-1]
        lines[-1] = re.split("[:：]" if re.search("[:：]", last) else _SAYS, last)[-1]
    return [part for line in lines for part in re.split(r"[,;，；、]|\band\b", line)]


def parse_reason(text: str, labels: Sequence[str]) -> Parsed:
    """Nothing: a reason is free text (docs/tasks.md section 3.5)."""
    return Parsed()


_ORDINALS = ("first", "second", "third", "fourth")
_SPEAKER_EMOTION = re.compile(r"the emotion of the speaker is\s*:?\s*(\w+)", re.IGNORECASE)


def parse_reply(text: str, labels: Sequence[str]) -> Parsed:
    """`<think>` four lines `</think>` reply (docs/tasks.md section 3.7)."""
    thought, closed, after = text.partition("</think>")
    emotion = [word.lower() for word in _SPEAKER_EMOTION.findall(thought)[:1]]
    if not closed and "<think>" not in thought:
        return Parsed(labels=emotion, reply=text.strip() or None)
    chain = _chain(thought.split("<think>", 1)[-1])
    reply = after.strip() or None
    return Parsed(labels=emotion, reply=reply if closed else None, chain=chain)


def _chain(thought: str) -> list[str | None]:
    """The four lines of a thought. A line is placed by its ordinal; if no line has one, by its order."""
    lines = [line.strip() for line in thought.splitlines() if line.strip()]
    places = [_ordinal(line) for line in lines]
    if all(place is None for place in places):
        places = list(range(len(lines)))
    chain: list[str | None] = [None] * 4
    current: int | None = None
    for line, place in zip(lines, places, strict=True):
        if place is not None:
            current = place
        # A line without an ordinal continues the one before it.
        if current is not None and current < 4:
            begun = chain[current]
            chain[current] = line if begun is None else f"{begun} {line}"
    return chain


def _ordinal(line: str) -> int | None:
    return next((i for i, word in enumerate(_ORDINALS) if line.lower().startswith(word)), None)


@dataclass(frozen=True)
class Task:
    """A task (docs/tasks.md section 1).

    Attributes:
        name: "msa", "mer", "ov-mer", "eri", "mir" or "erg".
        title: the name in full.
        level: "perception", "understanding" or "interaction".
        tag: opens the question (docs/tasks.md section 3.1); "" where the task has none.
        question: the question; {labels} stands for the candidates.
        labels: the default candidates; empty for a task without candidates.
        parse: (text of an answer, candidates) -> what is read from it.
        max_new_tokens: default length of an answer.
    """

    name: str
    title: str
    level: str
    tag: str
    question: str
    labels: tuple[str, ...]
    parse: Callable[[str, Sequence[str]], Parsed]
    max_new_tokens: int

    def ask(self, labels: Sequence[str] | None = None, template: str | None = None) -> str:
        """The question with its candidates, opened by the tag.

        Args:
            labels: candidates in place of the task's own.
            template: question in place of the task's own; it may hold {labels}.
        """
        candidates = ", ".join(labels or self.labels)
        question = (template or self.question).replace("{labels}", candidates)
        if not self.tag or question.startswith(self.tag):
            return question
        return f"{self.tag} {question}"


TASKS = {
    task.name: task
    for task in (
        Task(
            "msa", "multimodal sentiment analysis", "perception", "",
            "Is the sentiment of the person positive, negative or neutral? Answer with one of: {labels}.",
            POLARITIES, parse_label, 64,
        ),
        Task(
            "mer", "multimodal emotion recognition", "perception", "[Recognition]",
            "Which of these emotions does the person feel most: {labels}? "
            "Answer in a sentence ending in the emotion.",
            EMOTIONS, parse_label, 64,
        ),
        Task(
            "ov-mer", "open-vocabulary emotion recognition", "understanding", "[Recogn_OV]",
            "Name every emotion that the person shows, in your own words, separated by commas.",
            (), parse_open_labels, 128,
        ),
        Task(
            "eri", "emotion reason inference", "understanding", "[Inference]",
            "What does the person feel, and what in the face, the voice, the scene and the words shows it?",
            (), parse_reason, 512,
        ),
        Task(
            "mir", "multimodal intent recognition", "understanding", "[Intent]",
            "Which of these intents does the person have: {labels}? Answer with the intent alone.",
            MINTREC2_INTENTS, parse_label, 32,
        ),
        Task(
            "erg", "empathetic response generation", "interaction", "[Interaction]",
            "Think inside <think></think> in four lines: first the event, second the emotion of the speaker, "
            "third its cause, fourth the goal of a response. Then reply to the speaker with empathy.",
            (), parse_reply, 512,
        ),
    )
}  # fmt: skip


def get_task(name: str) -> Task:
    """The task of this name. Raises UsageError listing the names if there is none."""
    if name not in TASKS:
        raise UsageError(f"task {name!r} does not exist: use {', '.join(TASKS)}")
    return TASKS[name]
