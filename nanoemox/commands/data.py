"""`nanoemox data`: check a manifest, write the synthetic corpus."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MediaError
from .common import Commands

if TYPE_CHECKING:
    from ..data.formats.manifest import Entry


def add_parser(commands: Commands) -> None:
    """Adds `data` to the subparsers of the command."""
    parser = commands.add_parser("data", help="check a manifest, write the synthetic corpus")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    validate = verbs.add_parser("validate", help="check a JSONL manifest, line by line")
    validate.set_defaults(run=_validate)
    validate.add_argument("file", metavar="FILE", type=Path)
    validate.add_argument("--media", action="store_true", help="decode every media file too")

    synth = verbs.add_parser("synth", help="write the synthetic affect corpus")
    synth.set_defaults(run=_synth)
    synth.add_argument("--out", required=True, metavar="DIR", type=Path, help="a folder that is new or empty")
    synth.add_argument("--seed", type=int, default=0, metavar="S")
    synth.add_argument("--n", type=int, default=1400, metavar="N", help="clips to train on (default 1400)")
    synth.add_argument("--test", type=int, metavar="M", help="clips to test on (default a fifth of N)")
    synth.add_argument("--workers", type=int, metavar="W", help="processes (default: one a core)")
    synth.add_argument(
        "--speech", action="store_true", help="espeak-ng says the words; bytes vary with its version"
    )


def _validate(args: argparse.Namespace) -> int:
    from collections import Counter

    from ..data.formats.manifest import read

    entries, complaints = read(args.file)
    if args.media:
        complaints += _unreadable(args.file, entries)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    tasks = Counter(entry.values["task"] for entry in entries)
    clips = len({entry.values["id"] for entry in entries})
    counted = ", ".join(f"{task} {count}" for task, count in sorted(tasks.items()))
    if complaints:
        print(
            f"{args.file}: {len(complaints)} complaints; {len(entries)} lines could be read", file=sys.stderr
        )
        return 1
    print(f"{args.file}: {len(entries)} lines about {clips} clips are fine ({counted})")
    return 0


def _unreadable(file: Path, entries: "list[Entry]") -> list[str]:
    """A complaint about each line with a file that cannot be decoded; every part of a file is read once."""
    problems: dict[tuple, str | None] = {}
    complaints = []
    for entry in entries:
        for stream, path in (("video", entry.video), ("audio", entry.audio)):
            if path is None or not path.is_file():
                continue
            part = (path, entry.values.get("start"), entry.values.get("end"))
            if part not in problems:
                problems[part] = _problem(stream, *part)
            if problems[part]:
                complaints.append(f"{file}: line {entry.line}: {stream}: {problems[part]}")
    return complaints


def _problem(stream: str, path: Path, start: float | None, end: float | None) -> str | None:
    """Why a part of a media file gives no picture ("video") or no sound ("audio"); None if it does."""
    from ..media.read import read_clip

    try:
        clip = read_clip(path, start=start, end=end)
    except MediaError as error:
        return str(error)
    if stream == "video" and clip.frames is None:
        return f"{path}: no picture in it; give another file"
    if stream == "audio" and clip.audio is None:
        return f"{path}: no sound in it; give another file"
    return None


def _synth(args: argparse.Namespace) -> int:
    from ..data.synthetic import write_corpus

    seconds = write_corpus(
        args.out, seed=args.seed, n=args.n, test=args.test, workers=args.workers, audible=args.speech
    )
    print(f"wrote {args.out} in {seconds:.0f} s", file=sys.stderr)
    return 0
