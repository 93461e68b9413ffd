"""The CSV family: MER-Caption+ and OV-MERD (tasks.md 5.2, 5.6), and EMER (5.7)."""

import random
from pathlib import Path

from .. import questions
from ..files import check_split, read_csv, read_list
from ..record import Kind, Media, Record, Records

_TRAINING = {
    "mercaptionplus": ("track2_train_mercaptionplus.csv", "track3_train_mercaptionplus.csv"),
    "ovmerd": ("track2_train_ovmerd.csv", "track3_train_ovmerd.csv"),
}


def description(record: Record, rng: random.Random) -> tuple[str, str]:
    return questions.reason(record.fields["description"], rng)


def ovlabel(record: Record, rng: random.Random) -> tuple[str, str]:
    return questions.open_labels(record.fields["ovlabel"], rng)


DESCRIBED = {"description": Kind("eri", description), "ovlabel": Kind("ov-mer", ovlabel)}


def open_set(
    format: str, root: Path, split: str, name: str | None, *, video: str = "video", audio: str = "audio"
) -> Records:
    """mercaptionplus and ovmerd have a train part, ovmerd_plus and emer a test part."""
    check_split(format, split, ("train",) if format in _TRAINING else ("test",))
    media = Media(root / video, root / audio)
    if format == "emer":
        rows = read_csv(root / "gt-eng.csv", "names", "emotions", "subtitles", "reasons")
        kind = Kind("eri", description)
        records = [
            Record(row["names"], row["subtitles"], {"description": row["reasons"], "onehot": row["emotions"]})
            for row in rows
        ]
        return Records(format, records, {"comprehensive_emotion_reasoning": kind}, media, name=name)
    if format == "ovmerd_plus":
        words = _column(root / "subtitle_eng.csv", "sentence")
        labels = _column(root / "ovlabel.csv", "openset")
        records = [
            Record(key, words.get(key, ""), {"ovlabel": _joined(text)}) for key, text in labels.items()
        ]
        return Records(format, records, {"ovlabel": DESCRIBED["ovlabel"]}, media, name=name)
    track2, track3 = (root / file for file in _TRAINING[format])
    labels, reasons = _column(track2, "openset"), _column(track3, "reason")
    words_file = root / "subtitle_chieng.csv"
    words = _column(words_file, "english")
    for held, file in ((reasons, track3), (words, words_file)):
        if lost := [key for key in labels if key not in held]:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise ValueError(
                f"{file}: no row for {lost[0]!r}{more}, which {track2.name} names; copy both files again"
            )
    records = [
        Record(key, words[key], {"description": reasons[key], "ovlabel": _joined(text)})
        for key, text in labels.items()
    ]
    return Records(format, records, DESCRIBED, media, name=name)


def _column(path: Path, column: str) -> dict[str, str]:
    return {row["name"]: row[column] for row in read_csv(path, "name", column)}


def _joined(text: str) -> str:
    return ", ".join(read_list(text))
