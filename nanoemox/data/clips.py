"""Samples -> clips with the streams that a modality set needs."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..errors import MediaError, UsageError
from ..media.clip import Clip, Limits
from ..media.read import read_clip
from ..prompts import MODALITY_SETS
from .record import Sample

_FROM_FRAMES = {"frames", "face", "fusion", "image"}
_FROM_SOUND = {"audio", "fusion"}


def read_sample(
    sample: Sample, modalities: str, *, limits: Limits | None = None, trusted: bool = False
) -> Clip:
    """The clip of a sample, holding the streams that the modality set needs and no others.

    Args:
        limits: what one file may cost.
        trusted: decode in this process, which saves starting a child (0.15 s) a file. A damaged file could then end
            the process: for files of one's own, such as the synthetic corpus.

    Raises:
        MediaError: a file that cannot be read, or that lacks a stream that the set needs.
        UsageError: the modality set does not exist.
    """
    if modalities not in MODALITY_SETS:
        raise UsageError(f"modality set {modalities!r} does not exist: use {', '.join(MODALITY_SETS)}")
    chosen = MODALITY_SETS[modalities]
    wanted = {
        "frames": sample.video if _FROM_FRAMES & set(chosen.streams) else None,
        "audio": (sample.audio or sample.video) if _FROM_SOUND & set(chosen.streams) else None,
    }
    for stream, needed in (("frames", _FROM_FRAMES), ("audio", _FROM_SOUND)):
        if needed & set(chosen.streams) and wanted[stream] is None:
            raise MediaError(f"{sample.name}: no file with {stream}, which modality set {modalities} needs")
    reader = _read_here if trusted else read_clip
    read = {
        file: reader(file, start=sample.start, end=sample.end, limits=limits)
        for file in dict.fromkeys(wanted.values())
        if file is not None
    }
    out = Clip(subtitle=(sample.subtitle or None) if chosen.subtitle else None, source=sample.name)
    for stream, file in wanted.items():
        if file is None:
            continue
        clip = read[file]
        if getattr(clip, stream) is None:
            raise MediaError(
                f"{file}: no {stream} in it, which modality set {modalities} needs; leave the clip out"
            )
        setattr(out, stream, getattr(clip, stream))
        if stream == "frames":
            out.frame_times = clip.frame_times
        else:
            out.window_starts = clip.window_starts
    for clip in read.values():
        out.duration = max(out.duration, clip.duration)
        out.notes += clip.notes
        out.read_seconds += clip.read_seconds
    if wanted["frames"] or wanted["audio"]:
        out.source = str(wanted["frames"] or wanted["audio"])
    return out


def _read_here(file: Path, start: float | None, end: float | None, limits: Limits | None) -> Clip:
    """What read_clip gives, without a child."""
    from ..media.child import answer
    from ..media.container import Refused

    began = time.perf_counter()
    if not file.is_file():
        raise MediaError(f"{file}: no such file")
    request = {
        "path": str(file),
        "subtitle": None,
        "start": start,
        "end": end,
        "limits": asdict(limits or Limits()),
    }
    try:
        header, arrays = answer(request)
    except (Refused, OSError) as error:
        raise MediaError(f"{file}: {error}") from error
    held = iter(np.ascontiguousarray(array) for array in arrays)
    return Clip(
        frames=next(held) if header["frames"] else None,
        audio=next(held) if header["audio"] else None,
        source=str(file),
        duration=header["duration"],
        frame_times=header["frame_times"],
        window_starts=header["window_starts"],
        notes=header["notes"],
        read_seconds=time.perf_counter() - began,
    )
