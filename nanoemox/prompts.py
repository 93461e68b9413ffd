"""The prompt: which streams it shows, in what order and in which words (architecture section 10).

A prompt is a list of segments: plain text, or a stream whose placeholder stands for that many tokens.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Protocol

from .errors import CheckpointError

STREAMS = ("fusion", "audio", "face", "frames", "image")


class TextEncoder(Protocol):
    """What a prompt needs of a tokenizer: ids of plain text, and the id that stands for a token of each stream."""

    placeholder_ids: dict[str, int]

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Stream:
    """A stretch of `count` placeholder tokens."""

    kind: str


@dataclass(frozen=True)
class ModalitySet:
    """Streams in prompt order, whether there is a subtitle, and what the official table reads from disk."""

    streams: tuple[str, ...]
    subtitle: bool
    official_loads: tuple[str, ...]
    official_start: bool = True  # whether the official template opens with "###Human: "


# Section 10. Ours always open with "###Human: "; the column is kept for parity.
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
    """The set for what a clip holds. Raises ValueError for a clip that holds nothing."""
    if frames and audio:
        return "multiface_audio_face_frame_text"  # with an empty subtitle when there are no words
    if frames:
        return "face_frame_text" if subtitle else "face_frame"
    if audio:
        return "audio_text" if subtitle else "audioonly"
    if subtitle:
        return "textonly"
    raise ValueError("the clip holds neither frames, nor audio, nor a subtitle: nothing to answer from")


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
# In place of the subtitle where its slot holds the turns of a dialogue so far (AvaMERG); a bundle may replace it too.
_HISTORY = {"history": "The conversation so far is <Dialogue History>{history}</Dialogue History>. "}
_FIELDS = {"subtitle", "question", *STREAMS}


@dataclass(frozen=True)
class Templates:
    """The wording. A checkpoint expects the wording it was trained with, so a bundle may replace any part of it.

    `templates.json` in the bundle: {"pieces": {piece: text}, "sets": {modality set: whole prompt},
    "questions": {task: text}}; every part is optional. Fields in braces are filled in: a piece holds its own,
    a whole prompt those of its set, `subtitle` and `question`; a question may hold {labels}.
    """

    pieces: dict[str, str] = field(default_factory=lambda: dict(_PIECES))
    sets: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)

    FILE = "templates.json"

    @staticmethod
    def from_folder(folder: str | Path) -> "Templates":
        """The bundle's own wording, or the default one where it has no templates.json."""
        path = Path(folder) / Templates.FILE
        if not path.is_file():
            return Templates()
        from .tasks import TASKS

        known = {"pieces": {*_PIECES, *_HISTORY}, "sets": set(MODALITY_SETS), "questions": set(TASKS)}
        try:
            values = json.loads(path.read_text())
            for part, texts in values.items():
                if part not in known:
                    raise ValueError(f"unknown part {part!r}; known are {', '.join(known)}")
                for name, text in texts.items():
                    if name not in known[part]:
                        raise ValueError(
                            f"unknown name {part}.{name}; known are {', '.join(sorted(known[part]))}"
                        )
                    _check_fields(f"{part}.{name}", text, part, name)
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return Templates(
            {**_PIECES, **values.get("pieces", {})}, values.get("sets", {}), values.get("questions", {})
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Writes templates.json where the wording differs from the default."""
        if self != Templates():
            parts = {"pieces": self.pieces, "sets": self.sets, "questions": self.questions}
            (Path(folder) / self.FILE).write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n")


def _fields(text: str) -> list[str]:
    parsed = [(name, form, kind) for _, name, form, kind in Formatter().parse(text) if name is not None]
    return [name + (f"!{kind}" if kind else "") + (f":{form}" if form else "") for name, form, kind in parsed]


def _check_fields(where: str, text: str, part: str, name: str) -> None:
    if part == "questions":
        wanted, optional = set(), {"labels"}
    elif part == "sets":
        chosen = MODALITY_SETS[name]
        wanted, optional = {"question", *chosen.streams} | ({"subtitle"} if chosen.subtitle else set()), set()
    else:
        wanted = {"question"} if name == "instruction" else set() if name in ("start", "end") else {name}
        optional = set()
    found = _fields(text)
    if len(found) != len(set(found)) or not wanted <= set(found) <= wanted | optional:
        fields = ", ".join("{" + f + "}" for f in sorted(wanted | optional)) or "no field"
        raise ValueError(f"{where} must hold {fields}, each once; it holds {found}")


def build(
    set_name: str,
    *,
    subtitle: str | None,
    question: str,
    templates: Templates,
    official_start: bool = False,
    history: bool = False,
) -> list[str | Stream]:
    """Segments of one prompt.

    Args:
        subtitle: None counts as the empty subtitle; ignored by sets without one.
        history: `subtitle` holds the turns of a dialogue so far, which have a tag pair of their own.
        official_start: leave out "###Human: " where the official template does (parity only).
    """
    chosen = MODALITY_SETS[set_name]
    if set_name in templates.sets:
        text = templates.sets[set_name]
    else:
        words = ["history" if history else "subtitle"] if chosen.subtitle else []
        names = ["start", *chosen.streams, *words, "instruction", "end"]
        if official_start and not chosen.official_start:
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
    merged: list[str | Stream] = []
    for segment in segments:  # one text between two streams is tokenised as one text
        if isinstance(segment, str) and merged and isinstance(merged[-1], str):
            merged[-1] += segment
        elif segment:
            merged.append(segment)
    return merged


def tokenize(segments: list[str | Stream], tokenizer: TextEncoder, counts: dict[str, int]) -> list[int]:
    """Ids with every placeholder repeated to its count, without bos (a prompt for generation starts with it)."""
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, Stream):
            ids += [tokenizer.placeholder_ids[segment.kind]] * counts[segment.kind]
        else:
            ids += tokenizer.encode(segment)
    return ids
