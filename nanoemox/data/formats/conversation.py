"""Conversation JSON: CREMA-D, M3ED, CAER + FERV39k, MIntRec and MIntRec2.0 (docs/data.md section 1)."""

import re
from dataclasses import dataclass
from pathlib import Path

from ...tasks import MINTREC2_INTENTS
from .. import questions
from ..files import check_split, read_json, require
from ..record import Kind, Media, Record, Records

CREMA_D = ("anger", "disgust", "fear", "happy", "neutral", "sad")
CAER_FERV39K = (*CREMA_D, "surprise")
MINTREC_INTENTS = (
    "advise", "agree", "apologise", "arrange", "ask for help", "care", "comfort", "complain", "criticize",
    "flaunt", "greet", "inform", "introduce", "joke", "leave", "oppose", "praise", "prevent", "taunt",
    "thank",
)  # fmt: skip


@dataclass(frozen=True)
class _Set:
    """How one data set uses the format.

    Attributes:
        files: part -> annotation file.
        media_key: key of an item's media path.
        candidates: labels that the questions offer.
        kind: the answer type.
        video, audio: folders of the media, None where the set has none of that kind.
    """

    files: dict[str, str]
    media_key: str
    candidates: tuple[str, ...]
    kind: str = "emotion_recognition"
    video: str | None = None
    audio: str | None = None


_SETS = {
    "crema_d": _Set({"train": "crema_d_annotations.json"}, "audios", CREMA_D, audio="audio"),
    "m3ed": _Set({"train": "m3ed_annotaton.json"}, "audios", (), audio="audio"),  # the name is spelt so
    "caer_ferv39k": _Set({"train": "caer_ferv39k_ann.json"}, "videos", CAER_FERV39K, video="video"),
    "mintrec": _Set(
        {"train": "train_MIntRec_ann.json", "test": "test_MIntRec_ann.json"},
        "videos",
        MINTREC_INTENTS,
        "intent_recognition",
        "video",
        "audio",
    ),
    "mintrec2": _Set(
        {"train": "train_MIntRec2_ann.json", "test": "test_MIntRec2_ann.json"},
        "videos",
        MINTREC2_INTENTS,
        "intent_recognition",
        "video",
        "audio",
    ),
}


def open_set(
    format: str,
    root: Path,
    split: str,
    name: str | None,
    *,
    video: str | None = None,
    audio: str | None = None,
) -> Records:
    """Open one of _SETS. Labels are in the field `onehot` (an emotion) or `intent`, spelt as annotated.

    The videos of a test part are in `test_video` where that folder exists.
    """
    layout = _SETS[format]
    check_split(format, split, layout.files)
    field = "intent" if layout.kind == "intent_recognition" else "onehot"
    conversations = read_conversations(root / layout.files[split], layout.media_key)
    records = [Record(key, subtitle, {field: label}) for key, (subtitle, label) in conversations.items()]
    if field == "intent":
        kind = Kind("mir", lambda record, rng: questions.intent(record.fields["intent"], layout.candidates))
    else:
        kind = Kind("mer", lambda record, rng: questions.emotion(record.fields["onehot"], layout.candidates))
    if video is None and layout.video == "video" and split == "test" and (root / "test_video").is_dir():
        video = "test_video"
    video, audio = video or layout.video, audio or layout.audio
    media = Media(root / video if video else None, root / audio if audio else None)
    return Records(format, records, {layout.kind: kind}, media, name=name, candidates=layout.candidates)


def read_conversations(path: Path, media_key: str) -> dict[str, tuple[str, str]]:
    """Name -> (subtitle, label).

    The later of two items with the same name wins; an item that lacks `messages` or `media_key` is skipped.
    """
    conversations: dict[str, tuple[str, str]] = {}
    for number, item in enumerate(read_json(path, list), 1):
        where = f"{path}: item {number}"
        require(item, dict, where)
        if "messages" not in item or media_key not in item:
            continue
        files = require(item[media_key], list, f"{where}: {media_key}")
        file = require(files[0] if files else None, str, f"{where}: {media_key}[0]")
        contents: dict[str, object] = {"user": "", "assistant": None}
        for message in require(item["messages"], list, f"{where}: messages"):
            require(message, dict, f"{where}: messages")
            role = require(message.get("role"), str, f"{where}: role of a message")
            contents[role] = message.get("content")
        subtitle = require(contents["user"], str, f"{where}: content of the user")
        label = require(contents["assistant"], str, f"{where}: content of the assistant")
        conversations[base_name(file)] = subtitle, label.strip()
    return conversations


def base_name(path: str) -> str:
    """The last part of a path with slashes or backslashes, without its ending."""
    return re.sub(r"\.[^.]*$", "", re.split(r"[/\\]", path)[-1])
