"""Samples -> clips with the streams that a modality set needs."""

from ..errors import MediaError, UsageError
from ..media import Clip, Limits, read_clip
from ..prompts import MODALITY_SETS
from .record import Sample

_FROM_FRAMES = {"frames", "face", "fusion", "image"}
_FROM_SOUND = {"audio", "fusion"}


def read_sample(sample: Sample, modalities: str, *, limits: Limits | None = None) -> Clip:
    """The clip of a sample, holding the streams that the modality set needs and no others.

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
    read = {
        file: read_clip(file, start=sample.start, end=sample.end, limits=limits)
        for file in dict.fromkeys(wanted.values())
        if file is not None
    }
    out = Clip(subtitle=(sample.subtitle or None) if chosen.subtitle else None, source=sample.name)
    for stream, file in wanted.items():
        if file is None:
            continue
        clip = read[file]
        if getattr(clip, stream) is None:
            raise MediaError(f"{file}: no {stream} in it, which modality set {modalities} needs; leave the clip out")
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
