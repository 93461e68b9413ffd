"""Conversation JSON: CREMA-D, M3ED, CAER + FERV39k, MIntRec and MIntRec2.0 (tasks.md 5.1)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...tasks import MINTREC2_INTENTS
from .. import questions
from ..files import check_split, need, read_json
from ..record import Kind, Media, Record, Records

CREMA_D = ("anger", "disgust", "fear", "happy", "neutral", "sad")
CAER_FERV39K = (*CREMA_D, "surprise")
MINTREC_INTENTS = (
    "advise", "agree", "apologise", "arrange", "ask for help", "care", "comfort", "complain", "criticize", "flaunt",
    "greet", "inform", "introduce", "joke", "leave", "oppose", "praise", "prevent", "taunt", "thank",
)  # fmt: skip


@dataclass(frozen=True)
class _Set:
    files: dict[str, str]  # part -> annotation file
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
        "videos", MINTREC_INTENTS, "intent_recognition", "video", "audio",
    ),
    "mintrec2": _Set(
        {"train": "train_MIntRec2_ann.json", "test": "test_MIntRec2_ann.json"},
        "videos", MINTREC2_INTENTS, "intent_recognition", "video", "audio",
    ),
}  # fmt: skip


def open_set(
    format: str,
    root: Path,
    split: str,
    name: str | None,
    *,
    video: str | None = None,
    audio: str | None = None,
) -> Records:
    """One of _SETS. Labels are in the fields as `onehot` (an emotion) or `intent`, spelt as annotated.

    Videos of a test part are looked for in `test_video` where there is such a folder.
    """
    chosen = _SETS[format]
    check_split(format, split, tuple(chosen.files))
    field = "intent" if chosen.kind == "intent_recognition" else "onehot"
    pairs = read_conversations(root / chosen.files[split], chosen.media_key)
    records = [Record(key, subtitle, {field: label}) for key, (subtitle, label) in pairs.items()]
    if field == "intent":
        kind = Kind("mir", lambda record, rng: questions.intent(record.fields["intent"], chosen.candidates))
    else:
        kind = Kind("mer", lambda record, rng: questions.emotion(record.fields["onehot"], chosen.candidates))
    if video is None and chosen.video == "video" and split == "test" and (root / "test_video").is_dir():
        video = "test_video"
    video, audio = video or chosen.video, audio or chosen.audio
    media = Media(root / video if video else None, root / audio if audio else None)
    return Records(format, records, {chosen.kind: kind}, media, name=name, candidates=chosen.candidates)


def read_conversations(path: Path, media_key: str) -> dict[str, tuple[str, str]]:
    """name -> (subtitle, label). The later of two items of a name wins; an item without either key is skipped."""
    found: dict[str, tuple[str, str]] = {}
    for number, item in enumerate(read_json(path, list), 1):
        where = f"{path}: item {number}"
        need(item, dict, where)
        if "messages" not in item or media_key not in item:
            continue
        files = need(item[media_key], list, f"{where}: {media_key}")
        file = need(files[0] if files else None, str, f"{where}: {media_key}[0]")
        said: dict[Any, Any] = {"user": "", "assistant": None}
        for message in need(item["messages"], list, f"{where}: messages"):
            role = need(
                need(message, dict, f"{where}: messages").get("role"), str, f"{where}: role of a message"
            )
            said[role] = message.get("content")
        subtitle = need(said["user"], str, f"{where}: content of the user")
        found[base_name(file)] = (
            subtitle,
            need(said["assistant"], str, f"{where}: content of the assistant").strip(),
        )
    return found


def base_name(path: str) -> str:
    """Last part of a path of either kind of slash, without its ending."""
    return re.sub(r"\.[^.]*$", "", re.split(r"[/\\]", path)[-1])
