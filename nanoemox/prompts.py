"""The prompt: which streams it holds, in what order and in which words (docs/architecture.md section 10).

A prompt is a list of segments: plain text, or a stream, whose tokens take the place of placeholders.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Protocol

from .errors import CheckpointError, InputError

STREAMS = ("fusion", "audio", "face", "frames", "image")


class TextEncoder(Protocol):
    """What a prompt needs of a tokenizer.

    Attributes:
        placeholder_ids: stream -> id that stands for one token of the stream.
    """

    placeholder_ids: dict[str, int]

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Stream:
    """The place of a stream in a prompt; `tokenize` puts one placeholder there for each of its tokens."""

    kind: str  # one of STREAMS


@dataclass(frozen=True)
class ModalitySet:
    """A row of the official table of prompts."""

    streams: tuple[str, ...]  # in prompt order
    subtitle: bool  # whether the prompt has a slot for the words
    official_loads: tuple[str, ...]  # what the official code reads from disk
    official_start: bool = True  # whether the official template opens with "###Human: "


# docs/architecture.md section 10. Our prompts always open with "###Human: "; `official_start` is for parity.
MODALITY_SETS = {
    "faceframe": ModalitySet(("audio", "frames", "face"), True, ("audio", "frame", "face")),
    "face": ModalitySet(("audio", "face"), True, ("audio", "face")),
    "frame": ModalitySet(("audio", "frames"), True, ("audio", "frame")),
    "audioonly": ModalitySet(("audio",), False, ("audio",)),
    "textonly": ModalitySet((), True, ()),
    "faceonly": ModalitySet(("face",), False, ("face",)),
    "frameonly": ModalitySet(("frames",), False, ("frame",)),
    "image": ModalitySet(("image",), False, ("image",)),
    "face_frame": ModalitySet(("frames", "face"), False, ("face", "frame")),
    "face_frame_text": ModalitySet(("frames", "face"), True, ("face", "frame"), False),
    "audio_text": ModalitySet(("audio",), True, ("audio",), False),
    "face_text": ModalitySet(("face",), True, ("face", "frame"), False),
    "frame_text": ModalitySet(("frames",), True, ("frame",), False),
    "multiface_text": ModalitySet(("fusion",), True, ("face", "audio")),
    "multiface_audio_face_text": ModalitySet(("fusion", "audio", "face"), True, ("face", "audio")),
    "multiframe_audio_frame_text": ModalitySet(("fusion", "audio", "frames"), True, ("frame", "audio")),
    "multiface_audio_face_frame_text": ModalitySet(
        ("fusion", "audio", "face", "frames"), True, ("frame", "face", "audio")
    ),
}


def modality_set(*, frames: bool, audio: bool, subtitle: bool) -> str:
    """The name of the modality set for what a clip holds. Raises InputError for a clip that holds nothing."""
    if frames and audio:
        return "multiface_audio_face_frame_text"  # with an empty subtitle when there are no words
    if frames:
        return "face_frame_text" if subtitle else "face_frame"
    if audio:
        return "audio_text" if subtitle else "audioonly"
    if subtitle:
        return "textonly"
    raise InputError("the clip holds neither frames, nor audio, nor a subtitle: nothing to answer from")


_PIECES = {
    "start": "###Human: ",
    "fusion": "Voice and picture taken together give <Multi>{fusion}</Multi>. ",
    "audio": "The voice is <Audio>{audio}</Audio>. ",
    "face": "The facial expression over time is <Video>{face}</Video>. ",
    "frames": "The scene over time is <Video>{frames}</Video>. ",
    "image": "The picture is <Image>{image}</Image>. ",
    "subtitle": "The words are <Subtitle>{subtitle}</Subtitle>. ",
    "instruction": "Weigh everything given above and answer. {question}",
    "end": " ###Assistant: ",
}
# Takes the place of the subtitle where its slot holds the turns of a dialogue so far (AvaMERG).
_HISTORY = {"history": "The conversation so far is <Dialogue History>{history}</Dialogue History>. "}


@dataclass(frozen=True)
class Templates:
    """The wording of prompts. A checkpoint needs the wording of its training, so a bundle may hold its own.

    A bundle's `templates.json` holds {"pieces": {...}, "sets": {...}, "questions": {...}}, each optional.

    Attributes:
        pieces: piece -> text, for the pieces of the default prompt: "start", the streams, "subtitle" or
            "history", "instruction" and "end". A piece holds its own field in braces ("instruction":
            {question}).
        sets: modality set -> whole prompt in place of the pieces. It holds the fields of the set's streams,
            {subtitle} where the set has one, and {question}.
        questions: task -> question in place of the task's own. It may hold {labels}.
    """

    pieces: dict[str, str] = field(default_factory=lambda: dict(_PIECES))
    sets: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)

    FILE = "templates.json"

    @staticmethod
    def from_folder(folder: str | Path) -> "Templates":
        """The wording of a bundle's templates.json, or the default where the bundle has none.

        Raises CheckpointError naming the file and the part that is unknown or lacks a field.
        """
        path = Path(folder) / Templates.FILE
        if not path.is_file():
            return Templates()
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        problem = _problem(values)
        if problem is not None:
            raise CheckpointError(f"{path}: {problem}")
        pieces = {**_PIECES, **values.get("pieces", {})}
        return Templates(pieces, values.get("sets", {}), values.get("questions", {}))

    def save(self, folder: str | Path) -> None:
        """Write templates.json if the wording differs from the default."""
        if self != Templates():
            parts = {"pieces": self.pieces, "sets": self.sets, "questions": self.questions}
            (Path(folder) / self.FILE).write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n")


def _problem(values: Any) -> str | None:
    """What is wrong with the content of a templates.json, if anything."""
    from .tasks import TASKS

    known = {"pieces": {*_PIECES, *_HISTORY}, "sets": set(MODALITY_SETS), "questions": set(TASKS)}
    if not isinstance(values, dict):
        return "not a JSON object"
    for part, texts in values.items():
        if part not in known:
            return f"unknown part {part!r}; known are {', '.join(known)}"
        if not isinstance(texts, dict):
            return f"{part} must be an object, got {texts!r}"
        for name, text in texts.items():
            if name not in known[part]:
                return f"unknown name {part}.{name}; known are {', '.join(sorted(known[part]))}"
            if not isinstance(text, str):
                return f"{part}.{name} must be a text, got {text!r}"
            problem = _field_problem(part, name, text)
            if problem is not None:
                return problem
    return None


def _field_problem(part: str, name: str, text: str) -> str | None:
    """What is wrong with the fields in braces of one text, if anything."""
    required, optional = _expected_fields(part, name)
    try:
        fields = _fields(text)
    except ValueError as error:  # a brace that is not closed
        return f"{part}.{name}: {error}"
    if len(fields) == len(set(fields)) and required <= set(fields) <= required | optional:
        return None
    expected = ", ".join("{" + field + "}" for field in sorted(required | optional)) or "no field"
    return f"{part}.{name} must hold {expected}, each once; it holds {fields}"


def _expected_fields(part: str, name: str) -> tuple[set[str], set[str]]:
    """Fields that a text must hold and fields that it may hold."""
    if part == "questions":
        return set(), {"labels"}
    if part == "sets":
        modalities = MODALITY_SETS[name]
        subtitle = {"subtitle"} if modalities.subtitle else set()
        return {"question", *modalities.streams} | subtitle, set()
    if name in ("start", "end"):
        return set(), set()
    return {"question" if name == "instruction" else name}, set()


def _fields(text: str) -> list[str]:
    """The fields in braces, each with its conversion and format, so that only a plain one equals its name."""
    fields = []
    for _, name, form, conversion in Formatter().parse(text):
        if name is not None:
            fields.append(name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else ""))
    return fields


def build(
    set_name: str,
    *,
    subtitle: str | None,
    question: str,
    templates: Templates,
    official_start: bool = False,
    history: bool = False,
) -> list[str | Stream]:
    """The segments of one prompt.

    Args:
        set_name: one of MODALITY_SETS.
        subtitle: the words; None counts as the empty subtitle. Ignored by sets without one.
        question: the question with its candidates.
        templates: the wording.
        official_start: leave out "###Human: " where the official template does (parity only).
        history: `subtitle` holds the turns of a dialogue so far, which have a tag pair of their own.

    Returns:
        Texts and streams in prompt order, no two texts next to each other.
    """
    modalities = MODALITY_SETS[set_name]
    if set_name in templates.sets:
        text = templates.sets[set_name]
    else:
        words = ["history" if history else "subtitle"] if modalities.subtitle else []
        names = ["start", *modalities.streams, *words, "instruction", "end"]
        if official_start and not modalities.official_start:
            names.remove("start")
        pieces = _HISTORY | templates.pieces
        text = "".join(pieces[name] for name in names)
    segments: list[str | Stream] = []
    values = {"subtitle": subtitle or "", "history": subtitle or "", "question": question}
    for literal, name, _, _ in Formatter().parse(text):
        segments.append(literal)
        if name in STREAMS:
            segments.append(Stream(name))
        elif name is not None:
            segments.append(values[name])
    return _join_texts(segments)


def _join_texts(segments: list[str | Stream]) -> list[str | Stream]:
    """Joins neighbouring texts, because a tokenizer must see a text between two streams as a whole."""
    merged: list[str | Stream] = []
    for segment in segments:
        if isinstance(segment, str) and merged and isinstance(merged[-1], str):
            merged[-1] += segment
        elif segment:
            merged.append(segment)
    return merged


def tokenize(segments: list[str | Stream], tokenizer: TextEncoder, counts: dict[str, int]) -> list[int]:
    """Token ids of a prompt, without bos (a prompt for generation starts with it).

    Args:
        segments: from `build`.
        tokenizer: encodes the texts and names the placeholders.
        counts: stream -> number of its tokens, which is how often its placeholder is repeated.
    """
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, Stream):
            ids += [tokenizer.placeholder_ids[segment.kind]] * counts[segment.kind]
        else:
            ids += tokenizer.encode(segment)
    return ids
