"""The MER-UniBench sets: label archives and transcriptions (docs/data.md section 5)."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from .. import questions
from ..files import check_split, read_csv
from ..labels import read_archive
from ..record import Kind, Media, Record, Records

MELD = ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")
IEMOCAP = ("happy", "sad", "neutral", "anger")
_SIX_CLASSES = {
    "train": "train_corpus",
    "test": "test1_corpus",
    "test2": "test2_corpus",
    "test3": "test3_corpus",
}
_THREE_PARTS = {"train": "train_corpus", "val": "val_corpus", "test": "test_corpus"}


@dataclass(frozen=True)
class _Set:
    """Files of one data set.

    Attributes:
        labels: label archive.
        parts: part -> array of the archive.
        video, audio: folders of the media.
        classes: class names where the labels are indices.
        valence: whether the labels are valences.
        words: transcription file, and its column that holds the subtitle.
        endings: of video files.
    """

    labels: str
    parts: dict[str, str]
    video: str = "video"
    audio: str = "audio"
    classes: tuple[str, ...] = ()
    valence: bool = False
    words: tuple[str, str] = ("transcription-engchi-polish.csv", "english")
    endings: tuple[str, ...] = (".mp4",)


_SETS = {
    "mer2023": _Set("label-6way.npz", _SIX_CLASSES, endings=(".mp4", ".avi")),
    "mer2024": _Set(
        "label-6way.npz",
        {"train": "train_corpus", "test": "test1_corpus"},
        words=("transcription_merge.csv", "chinese"),
        endings=(".mp4", ".avi"),
    ),
    "meld": _Set("label.npz", _THREE_PARTS, "subvideo", "subaudio", MELD),
    "iemocap": _Set(
        "label_4way.npz",
        {"train": "whole_corpus", "test": "whole_corpus"},
        "subvideo-tgt",
        "subaudio",
        IEMOCAP,
        endings=(".avi",),
    ),
    "cmumosi": _Set("label.npz", _THREE_PARTS, "subvideo", "subaudio", valence=True),
    "cmumosei": _Set("label.npz", _THREE_PARTS, "subvideo_new", "subaudio", valence=True),
    "sims": _Set("label.npz", _THREE_PARTS, valence=True),
    "simsv2": _Set("label.npz", _THREE_PARTS, "video_new", valence=True),
}
IEMOCAP_TEST_SESSION = 5


def open_set(
    format: str,
    root: Path,
    split: str,
    name: str | None,
    *,
    video: str | None = None,
    audio: str | None = None,
) -> Records:
    """Open one of _SETS.

    Fields: `onehot`, or `valence` and the `sentiment` that follows from it. Candidates, and the range of
    valence, are those of the training part.
    """
    layout = _SETS[format]
    check_split(format, split, layout.parts)
    path = root / layout.labels
    archive = read_archive(path)
    for array in dict.fromkeys((layout.parts["train"], layout.parts[split])):
        if array not in archive:
            raise DataError(f"{path}: no array {array!r} in it; it has {', '.join(archive)}")
    file, column = layout.words
    words = {row["name"]: row[column] for row in read_csv(root / file, "name", column)}
    if format == "iemocap":
        parts = _iemocap_parts(path, archive["whole_corpus"])
    else:
        parts = {part: archive[layout.parts[part]] for part in ("train", split)}
    train = _read_labels(path, layout, parts["train"])
    labels = _read_labels(path, layout, parts[split])
    records = [Record(key, words.get(key, ""), fields) for key, fields in labels.items()]
    media = Media(root / (video or layout.video), root / (audio or layout.audio), layout.endings)
    if layout.valence:
        values = [fields["valence"] for fields in train.values()] or [0.0]
        return Records(format, records, _sentiment_kinds(min(values), max(values)), media, name=name)
    candidates = tuple(sorted({fields["onehot"] for fields in train.values()}))
    return Records(format, records, _emotion_kinds(candidates), media, name=name, candidates=candidates)


def _iemocap_parts(path: Path, labels: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The one array of IEMOCAP, split by session."""
    sessions = {name: _session(path, name) for name in labels}
    if set(sessions.values()) != {1, 2, 3, 4, 5}:
        raise DataError(f"{path}: the names must come from sessions 1 to 5, all of them")
    parts: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    for name, value in labels.items():
        part = "test" if sessions[name] == IEMOCAP_TEST_SESSION else "train"
        parts[part][name] = value
    return parts


def _session(path: Path, name: str) -> int:
    if len(name) < 5 or not name[4].isdecimal():
        raise DataError(f"{path}: {name!r} does not name its session; names look like Ses05F_impro01_F000")
    return int(name[4])


def _read_labels(path: Path, layout: _Set, labels: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> fields. Raises DataError naming the first label that is malformed."""
    read = _read_valence if layout.valence else _class_reader(layout.classes)
    fields = {}
    for name, value in labels.items():
        try:
            fields[name] = read(value)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path}: {name}: {value!r:.80} is no label ({error})") from error
    return fields


def _class_reader(classes: tuple[str, ...]) -> Callable[[Any], dict[str, Any]]:
    """A function from a stored label, a class index or the name itself, to its fields."""

    def read(value: Any) -> dict[str, Any]:
        emotion = value["emo"]
        if not classes:
            if not str(emotion).strip():
                raise DataError("emo is empty")
            return {"onehot": str(emotion)}
        number = float(emotion)
        if number not in range(len(classes)):
            raise DataError(f"emo must lie in 0..{len(classes) - 1} and be whole")
        return {"onehot": classes[int(number)]}

    return read


def _read_valence(value: Any) -> dict[str, Any]:
    """Fields of a stored valence (docs/tasks.md section 3.3)."""
    number = float(value["val"])
    if not math.isfinite(number):
        raise DataError("val must be a finite number")
    if number > 0:
        sentiment = "positive"
    elif number < 0:
        sentiment = "negative"
    else:
        sentiment = "neutral"
    return {"valence": number, "sentiment": sentiment}


def _emotion_kinds(candidates: tuple[str, ...]) -> dict[str, Kind]:
    def with_candidates(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.emotion(record.fields["onehot"], candidates)

    def without_candidates(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.emotion(record.fields["onehot"])

    return {
        "onehot_w_candidates": Kind("mer", with_candidates),
        "onehot_wo_candidates": Kind("mer", without_candidates),
    }


def _sentiment_kinds(low: float, high: float) -> dict[str, Kind]:
    def valence(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.valence(record.fields["valence"], low, high)

    def sentiment(record: Record, rng: random.Random) -> tuple[str, str]:
        return questions.sentiment(record.fields["sentiment"])

    return {"valence": Kind("msa", valence), "sentiment": Kind("msa", sentiment)}
