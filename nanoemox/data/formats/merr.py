"""MERR-fine (docs/data.md section 3)."""

from pathlib import Path
from typing import Any

from ..files import check_split, read_json, require
from ..record import Media, Record, Records
from .captions import DESCRIBED

FILE = "MERR_fine_grained.json"


def open_set(
    format: str, root: Path, split: str, name: str | None, *, video: str | None = None, audio: str = "audio"
) -> Records:
    """Open MERR-fine. `video` is by default `test3`, or `video` where `test3` does not exist."""
    check_split(format, split, ("train",))
    path = root / FILE
    records = [_record(key, value, f"{path}: {key}") for key, value in read_json(path, dict).items()]
    folder = video or ("test3" if (root / "test3").is_dir() else "video")
    return Records(format, records, DESCRIBED, Media(root / folder, root / audio), name=name)


def _record(name: str, value: Any, where: str) -> Record:
    entry = require(value, dict, where)
    subtitle = require(entry.get("text"), str, f"{where}: text")
    fields = {
        "description": require(entry.get("smp_reason_caption"), str, f"{where}: smp_reason_caption"),
        "ovlabel": require(entry.get("pseu_emotion"), str, f"{where}: pseu_emotion"),
        "audio_prior": require(entry.get("audio_prior_list"), str, f"{where}: audio_prior_list"),
    }
    visual = require(entry.get("visual_prior_list"), list, f"{where}: visual_prior_list")
    fields["visual_prior"] = ", ".join(map(str, visual))
    return Record(name, subtitle, fields)
