"""The MER-UniBench sets: label archives and transcriptions (tasks.md 5.5)."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import questions
from ..files import check_split, read_csv
from ..labels import read_archive
from ..record import Kind, Media, Record, Records

MELD = ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")
IEMOCAP = ("happy", "sad", "neutral", "anger")
_SIX = {"train": "train_corpus", "test": "test1_corpus", "test2": "test2_corpus", "test3": "test3_corpus"}
_THREE = {"train": "train_corpus", "val": "val_corpus", "test": "test_corpus"}


@dataclass(frozen=True)
class _Set:
    labels: str
    parts: dict[str, str]  # part -> array
    video: str = "video"
    audio: str = "audio"
    classes: tuple[str, ...] = ()  # of labels that are indices
    valence: bool = False
    words: tuple[str, str] = ("transcription-engchi-polish.csv", "english")
    endings: tuple[str, ...] = (".mp4",)


_SETS = {
    "mer2023": _Set("label-6way.npz", _SIX, endings=(".mp4", ".avi")),
    "mer2024": _Set(
        "label-6way.npz", {"train": "train_corpus", "test": "test1_corpus"},
        words=("transcription_merge.csv", "chinese"), endings=(".mp4", ".avi"),
    ),
    "meld": _Set("label.npz", _THREE, "subvideo", "subaudio", MELD),
    "iemocap": _Set(
        "label_4way.npz", {"train": "whole_corpus", "test": "whole_corpus"},
        "subvideo-tgt", "subaudio", IEMOCAP, endings=(".avi",),
    ),
    "cmumosi": _Set("label.npz", _THREE, "subvideo", "subaudio", valence=True),
    "cmumosei": _Set("label.npz", _THREE, "subvideo_new", "subaudio", valence=True),
    "sims": _Set("label.npz", _THREE, valence=True),
    "simsv2": _Set("label.npz", _THREE, "video_new", valence=True),
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
    """Fields: `onehot`, or `valence` and the `sentiment` derived from it. Candidates are those of the training part."""
    chosen = _SETS[format]
    check_split(format, split, tuple(chosen.parts))
    path = root / chosen.labels
    archive = read_archive(path)
    for part in dict.fromkeys((chosen.parts["train"], chosen.parts[split])):
        if part not in archive:
            raise ValueError(f"{path}: no array {part!r} in it; it has {', '.join(archive)}")
    file, column = chosen.words
    words = {row["name"]: row[column] for row in read_csv(root / file, "name", column)}
    label = _valence if chosen.valence else _class(chosen.classes)

    def fields_of(part: str) -> dict[str, dict[str, Any]]:
        found = {}
        for key, value in archive[chosen.parts[part]].items():
            if format != "iemocap" or (_session(path, key) == 5) == (part == "test"):
                try:
                    found[key] = label(value)
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    raise ValueError(f"{path}: {key}: {value!r:.80} is no label ({error})") from error
        return found

    if format == "iemocap" and {_session(path, key) for key in archive["whole_corpus"]} != {1, 2, 3, 4, 5}:
        raise ValueError(f"{path}: the names must come from sessions 1 to 5, all of them")
    train = fields_of("train")
    records = [Record(key, words.get(key, ""), fields) for key, fields in fields_of(split).items()]
    media = Media(root / (video or chosen.video), root / (audio or chosen.audio), chosen.endings)
    if chosen.valence:
        values = [fields["valence"] for fields in train.values()] or [0.0]
        return Records(format, records, _sentiment_kinds(min(values), max(values)), media, name=name)
    candidates = tuple(sorted({fields["onehot"] for fields in train.values()}))
    return Records(format, records, _emotion_kinds(candidates), media, name=name, candidates=candidates)


def _session(path: Path, name: str) -> int:
    if len(name) < 5 or not name[4].isdecimal():
        raise ValueError(f"{path}: {name!r} does not name its session; names look like Ses05F_impro01_F000")
    return int(name[4])


def _class(classes: tuple[str, ...]) -> Callable[[Any], dict[str, Any]]:
    def read(value: Any) -> dict[str, Any]:
        emotion = value["emo"]
        if not classes:
            if not str(emotion).strip():
                raise ValueError("emo is empty")
            return {"onehot": str(emotion)}
        number = float(emotion)
        if number not in range(len(classes)):
            raise ValueError(f"emo must lie in 0..{len(classes) - 1} and be whole")
        return {"onehot": classes[int(number)]}

    return read


def _valence(value: Any) -> dict[str, Any]:
    number = float(value["val"])
    if not math.isfinite(number):
        raise ValueError("val must be a finite number")
    return {
        "valence": number,
        "sentiment": "positive" if number > 0 else "negative" if number < 0 else "neutral",
    }


def _emotion_kinds(candidates: tuple[str, ...]) -> dict[str, Kind]:
    def listed(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.emotion(record.fields["onehot"], candidates)

    def free(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.emotion(record.fields["onehot"])

    return {"onehot_w_candidates": Kind("mer", listed), "onehot_wo_candidates": Kind("mer", free)}


def _sentiment_kinds(low: float, high: float) -> dict[str, Kind]:
    def number(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.valence(record.fields["valence"], low, high)

    def polarity(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.sentiment(record.fields["sentiment"])

    return {"valence": Kind("msa", number), "sentiment": Kind("msa", polarity)}
