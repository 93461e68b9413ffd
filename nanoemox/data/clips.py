"""Samples -> clips with the streams of a modality set."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..errors import MediaError, UsageError
from ..media.clip import Clip, Limits
from ..media.read import read_clip
from ..prompts import MODALITY_SETS
from .record import Sample

# Prompt streams that are computed from the frames, and from the sound, of a clip.
FRAME_STREAMS = frozenset({"frames", "face", "fusion", "image"})
AUDIO_STREAMS = frozenset({"audio", "fusion"})


def read_sample(
    sample: Sample, modalities: str, *, limits: Limits | None = None, trusted: bool = False
) -> Clip:
    """Read the clip of a sample: the streams of the modality set and no others.

    Args:
        sample: what a data set returns; see `nanoemox.data.open_dataset`.
        modalities: a key of `nanoemox.prompts.MODALITY_SETS`.
        limits: memory and time that one file may take.
        trusted: decode in this process, which saves the start of a child process (0.15 s) per file. A damaged
            file can then end this process: use it for your own files, such as the synthetic corpus.

    Returns:
        The clip: frames uint8 [8,3,224,224], audio float32 [8,32000] and subtitle, each None where the set
        does not use it (docs/architecture.md section 13).

    Raises:
        MediaError: a file cannot be read, or it lacks a stream of the set.
        UsageError: the modality set does not exist.
    """
    if modalities not in MODALITY_SETS:
        raise UsageError(f"modality set {modalities!r} does not exist: use {', '.join(MODALITY_SETS)}")
    files = _files_of(sample, modalities)
    read = _read_in_process if trusted else read_clip
    clips = {
        file: read(file, start=sample.start, end=sample.end, limits=limits)
        for file in dict.fromkeys(files.values())
    }
    subtitle = (sample.subtitle or None) if MODALITY_SETS[modalities].subtitle else None
    result = Clip(subtitle=subtitle, source=sample.name)
    for stream, file in files.items():
        clip = clips[file]
        array = clip.frames if stream == "frames" else clip.audio
        if array is None:
            raise MediaError(
                f"{file}: no {stream} in it, which modality set {modalities} needs; leave the clip out"
            )
        if stream == "frames":
            result.frames, result.frame_times = array, clip.frame_times
        else:
            result.audio, result.window_starts = array, clip.window_starts
    for clip in clips.values():
        result.duration = max(result.duration, clip.duration)
        result.notes += clip.notes
        result.read_seconds += clip.read_seconds
    if files:
        result.source = str(next(iter(files.values())))
    return result


def _files_of(sample: Sample, modalities: str) -> dict[str, Path]:
    """Stream ("frames", "audio") -> the file to read it from, for the streams that the set needs."""
    streams = set(MODALITY_SETS[modalities].streams)
    candidates = {
        "frames": (FRAME_STREAMS, sample.video),
        "audio": (AUDIO_STREAMS, sample.audio or sample.video),
    }
    files = {}
    for stream, (users, file) in candidates.items():
        if not users & streams:
            continue
        if file is None:
            raise MediaError(f"{sample.name}: no file with {stream}, which modality set {modalities} needs")
        files[stream] = file
    return files


def _read_in_process(file: Path, start: float | None, end: float | None, limits: Limits | None) -> Clip:
    """Same result as `read_clip`, without a child process."""
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
    contiguous = iter([np.ascontiguousarray(array) for array in arrays])
    return Clip(
        frames=next(contiguous) if header["frames"] else None,
        audio=next(contiguous) if header["audio"] else None,
        source=str(file),
        duration=header["duration"],
        frame_times=header["frame_times"],
        window_starts=header["window_starts"],
        notes=header["notes"],
        read_seconds=time.perf_counter() - began,
    )
