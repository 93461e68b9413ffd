"""The CSV family: MER-Caption+, OV-MERD and EMER (docs/data.md sections 2, 6 and 7)."""

import random
from pathlib import Path

from ...errors import DataError
from .. import questions
from ..files import check_split, read_csv, read_labels
from ..record import Kind, Media, Record, Records

# Format -> the files of labels and of descriptions.
_TRAINING = {
    "mercaptionplus": ("track2_train_mercaptionplus.csv", "track3_train_mercaptionplus.csv"),
    "ovmerd": ("track2_train_ovmerd.csv", "track3_train_ovmerd.csv"),
}


def description(record: Record, rng: random.Random) -> tuple[str, str]:
    """ERI about a record with a description."""
    return questions.reason(record.fields["description"], rng)


def ovlabel(record: Record, rng: random.Random) -> tuple[str, str]:
    """OV-MER about a record with labels."""
    return questions.open_labels(record.fields["ovlabel"], rng)


DESCRIBED = {"description": Kind("eri", description), "ovlabel": Kind("ov-mer", ovlabel)}


def open_set(
    format: str, root: Path, split: str, name: str | None, *, video: str = "video", audio: str = "audio"
) -> Records:
    """Open a set: mercaptionplus and ovmerd have a train part, ovmerd_plus and emer a test part."""
    check_split(format, split, ("train",) if format in _TRAINING else ("test",))
    media = Media(root / video, root / audio)
    if format == "emer":
        kinds = {"comprehensive_emotion_reasoning": Kind("eri", description)}
        records = _emer(root / "gt-eng.csv")
    elif format == "ovmerd_plus":
        kinds = {"ovlabel": DESCRIBED["ovlabel"]}
        records = _ovmerd_plus(root)
    else:
        kinds = DESCRIBED
        records = _training(format, root)
    return Records(format, records, kinds, media, name=name)


def _emer(path: Path) -> list[Record]:
    rows = read_csv(path, "names", "emotions", "subtitles", "reasons")
    return [
        Record(row["names"], row["subtitles"], {"description": row["reasons"], "onehot": row["emotions"]})
        for row in rows
    ]


def _ovmerd_plus(root: Path) -> list[Record]:
    words = _column(root / "subtitle_eng.csv", "sentence")
    labels = _column(root / "ovlabel.csv", "openset")
    return [Record(name, words.get(name, ""), {"ovlabel": _joined(text)}) for name, text in labels.items()]


def _training(format: str, root: Path) -> list[Record]:
    """Every name of the label file must be in the other two files."""
    track2, track3 = (root / file for file in _TRAINING[format])
    subtitles = root / "subtitle_chieng.csv"
    labels = _column(track2, "openset")
    reasons = _column(track3, "reason")
    words = _column(subtitles, "english")
    for rows, file in ((reasons, track3), (words, subtitles)):
        missing = [name for name in labels if name not in rows]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"{file}: no row for {missing[0]!r}{more}, which {track2.name} names; copy both files again"
            )
    return [
        Record(name, words[name], {"description": reasons[name], "ovlabel": _joined(text)})
        for name, text in labels.items()
    ]


def _column(path: Path, column: str) -> dict[str, str]:
    """Name -> cell of a column."""
    return {row["name"]: row[column] for row in read_csv(path, "name", column)}


def _joined(text: str) -> str:
    return ", ".join(read_labels(text))
