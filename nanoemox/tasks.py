"""The six tasks: question, labels, and how an answer's text is read (tasks.md sections 1 to 4)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError

POLARITIES = ("positive", "negative", "neutral")
EMOTIONS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
MINTREC2_INTENTS = (
    "acknowledge", "advise", "agree", "apologise", "arrange", "ask for help", "asking for opinions", "care", "comfort",
    "complain", "confirm", "criticize", "doubt", "emphasize", "explain", "flaunt", "greet", "inform", "introduce",
    "invite",
    "joke", "leave", "oppose", "plan", "praise", "prevent", "refuse", "taunt", "thank", "warn",
)  # fmt: skip
# Nouns and near forms that data sets use for the same seven emotions.
_FORMS = {
    "anger": "angry", "disgust": "disgusted", "fear": "fearful", "afraid": "fearful", "happiness": "happy",
    "joy": "happy", "sadness": "sad", "surprise": "surprised",
}  # fmt: skip


@dataclass
class Parsed:
    """An answer read: labels (may be empty), and for a reply its chain of empathy, a missing line being None."""

    labels: list[str] = field(default_factory=list)
    reply: str | None = None
    chain: list[str | None] | None = None


@dataclass
class Reply:
    """One answer. `text` is what the model said; the rest is read from it or measured on the way."""

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
        return dict(self.__dict__)


def check_labels(labels: Sequence[str] | None) -> list[str] | None:
    """Candidates of the caller's own, stripped. Raises UsageError for a bare string and for none at all."""
    if labels is None:
        return None
    given = [] if isinstance(labels, str) else [label.strip() for label in labels if label.strip()]
    if not given:
        raise UsageError(f"labels must be a list of at least one word, got {labels!r}")
    return given


def _whole_word(label: str) -> str:
    """Pattern of a label that is not part of a longer word; scripts without blanks have no word boundary to ask for."""
    before = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", label) else ""
    after = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", label) else ""
    return before + re.escape(label) + after


def pick_label(text: str, labels: Sequence[str]) -> list[str]:
    """The candidate that the text names last, whole words, any case; nothing if it names none."""
    forms = {label.lower(): label for label in labels}
    forms |= {form: forms[label] for form, label in _FORMS.items() if label in forms and form not in forms}
    longest_first = sorted(forms, key=len, reverse=True)
    found = re.findall("|".join(map(_whole_word, longest_first)), text.lower()) if forms else []
    return [forms[found[-1]]] if found else []


def split_list(text: str) -> list[str]:
    """`[a, b]`, `['a', 'b']` or `a, b` -> items, stripped of blanks, then of quotes (metrics.md 2.4)."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return [item for part in text.split(",") if (item := part.strip().strip("'\""))]


def parse_label(text: str, labels: Sequence[str]) -> Parsed:
    return Parsed(labels=pick_label(text, labels))


_SAYS = r"\b(?:is|are|feels?|feeling|seems|include|includes|shows?|express(?:es)?|appears)\b"


def parse_open_labels(text: str, labels: Sequence[str]) -> Parsed:
    """A bracketed list, a list over lines, or the one that ends the last sentence (`... is: happy and proud.`)."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    if tagged := re.search(r"<answer>(.*?)(?:</answer>|$)", text, flags=re.DOTALL):
        text = tagged[1]
    text = text.strip().removeprefix(TASKS["ov-mer"].tag).strip()
    if brackets := re.findall(r"\[([^\[\]]*)\]", text):
        parts = split_list(brackets[-1])
    else:
        lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line) for line in text.splitlines() if line.strip()]
        lines[-1:] = [
            re.split("[:：]" if re.search("[:：]", line) else _SAYS, line)[-1] for line in lines[-1:]
        ]
        parts = [part for line in lines for part in re.split(r"[,;，；、]|\band\b", line)]
    items = [part.strip(" .!。！\"'*_").lower() for part in parts]
    return Parsed(
        labels=[
            item for item in dict.fromkeys(items) if re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+){0,2}", item)
        ]
    )


def parse_reason(text: str, labels: Sequence[str]) -> Parsed:
    return Parsed()


_ORDINALS = ("first", "second", "third", "fourth")
_SPEAKER_EMOTION = re.compile(r"the emotion of the speaker is\s*:?\s*(\w+)", re.IGNORECASE)


def parse_reply(text: str, labels: Sequence[str]) -> Parsed:
    """`<think>` four lines `</think>` reply. Lines are told apart by their ordinal, else by their order."""
    thought, closed, after = text.partition("</think>")
    emotion = [word.lower() for word in _SPEAKER_EMOTION.findall(thought)[:1]]
    if not closed and "<think>" not in thought:
        return Parsed(labels=emotion, reply=text.strip() or None)
    lines = [line.strip() for line in thought.split("<think>", 1)[-1].splitlines() if line.strip()]
    places = [
        next((i for i, word in enumerate(_ORDINALS) if line.lower().startswith(word)), None) for line in lines
    ]
    if all(place is None for place in places):
        places = list(range(len(lines)))
    chain: list[str | None] = [None] * 4
    slot: int | None = None
    for line, place in zip(lines, places, strict=True):
        slot = slot if place is None else place
        if slot is not None and slot < 4:  # a line without an ordinal goes on with the one before
            held = chain[slot]
            chain[slot] = line if held is None else f"{held} {line}"
    return Parsed(labels=emotion, reply=(after.strip() or None) if closed else None, chain=chain)


@dataclass(frozen=True)
class Task:
    name: str
    title: str
    level: str  # perception, understanding or interaction
    tag: str  # opens the question; "" where the task has none
    question: str
    labels: tuple[str, ...]
    parse: Callable[[str, Sequence[str]], Parsed]
    max_new_tokens: int

    def ask(self, labels: Sequence[str] | None = None, template: str | None = None) -> str:
        """The question, tag first, with its candidates."""
        words = (template or self.question).replace("{labels}", ", ".join(labels or self.labels))
        return words if not self.tag or words.startswith(self.tag) else f"{self.tag} {words}"


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
            "Which of these emotions does the person feel most: {labels}? Answer in a sentence ending in the emotion.",
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
            "Think inside <think></think> in four lines: first the event, second the emotion of the speaker, third its "
            "cause, fourth the goal of a response. Then reply to the speaker with empathy.",
            (), parse_reply, 512,
        ),
    )
}  # fmt: skip


def get_task(name: str) -> Task:
    if name not in TASKS:
        raise UsageError(f"task {name!r} does not exist: use {', '.join(TASKS)}")
    return TASKS[name]
