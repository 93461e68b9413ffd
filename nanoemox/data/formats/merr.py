"""MERR-fine (tasks.md 5.3)."""

from pathlib import Path

from ..files import check_split, need, read_json
from ..record import Media, Record, Records
from .captions import DESCRIBED

FILE = "MERR_fine_grained.json"


def open_set(
    format: str, root: Path, split: str, name: str | None, *, video: str | None = None, audio: str = "audio"
) -> Records:
    """`video` is the folder of videos; default `test3`, or `video` where there is no such folder."""
    check_split(format, split, ("train",))
    path = root / FILE
    records = []
    for key, value in read_json(path, dict).items():
        need(value, dict, f"{path}: {key}")
        text, caption, label, heard = (
            need(value.get(field), str, f"{path}: {key}: {field}")
            for field in ("text", "smp_reason_caption", "pseu_emotion", "audio_prior_list")
        )
        seen = need(value.get("visual_prior_list"), list, f"{path}: {key}: visual_prior_list")
        fields = {
            "description": caption,
            "ovlabel": label,
            "visual_prior": ", ".join(map(str, seen)),
            "audio_prior": heard,
        }
        records.append(Record(key, text, fields))
    folder = video or ("test3" if (root / "test3").is_dir() else "video")
    return Records(format, records, DESCRIBED, Media(root / folder, root / audio), name=name)
