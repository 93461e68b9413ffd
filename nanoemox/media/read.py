"""Reads a media file into a Clip. A child process, which can be killed, decodes the file."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..config import FRAME_SIZE, FRAMES, WINDOW_SAMPLES, WINDOWS
from ..errors import MediaError, UsageError
from .clip import Clip, Limits


def read_clip(
    path: str | os.PathLike,
    subtitle: str | os.PathLike | None = None,
    start: float | None = None,
    end: float | None = None,
    *,
    limits: Limits | None = None,
) -> Clip:
    """Read what the model needs of a media file, or of its part start <= t < end.

    Args:
        path: any file that FFmpeg reads: video with or without sound, sound alone, a picture.
        subtitle: the words; or a file name ending in .srt or .vtt, of which the cues of the part are taken.
        start, end: seconds from where the file begins; None is its beginning or end.
        limits: what reading the file may cost.

    Returns:
        A Clip: frames uint8 [8,3,224,224] and audio float32 [8,32000] at 16 kHz, None for an absent stream.

    Raises:
        MediaError: the file cannot be read; one line that names it, what is wrong and what to do.
        UsageError: start and end do not describe a part.

    Source: docs/architecture.md section 13.
    """
    began = time.perf_counter()
    source = os.fsdecode(path)
    _check_part(start, end)
    words = None if subtitle is None else os.fsdecode(subtitle).strip()
    words_file = words if words is not None and words.lower().endswith((".srt", ".vtt")) else None
    _check_file(source)
    if words_file is not None:
        _check_file(words_file)
    limits = limits or Limits()
    request = {"path": source, "subtitle": words_file, "start": start, "end": end, "limits": asdict(limits)}
    header, body = _decode(source, request, limits)
    if words_file is not None:
        words = header["subtitle"]
    frames, audio = _arrays(header, body)
    return Clip(
        frames=frames,
        audio=audio,
        subtitle=words or None,
        source=source,
        duration=header["duration"],
        frame_times=header["frame_times"],
        window_starts=header["window_starts"],
        notes=header["notes"],
        read_seconds=time.perf_counter() - began,
    )


def _check_part(start: float | None, end: float | None) -> None:
    times = [time for time in (start, end) if time is not None]
    valid = all(0 <= time < math.inf for time in times)
    if not valid or (end is not None and (start or 0) >= end):
        raise UsageError(f"start {start} and end {end} must be seconds with 0 <= start < end")


def _printable(file: str) -> str:
    """A file name in one line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in file)


def _check_file(file: str) -> None:
    name = _printable(file)
    if not os.path.exists(file):
        raise MediaError(f"{name}: no such file")
    if not os.path.isfile(file):
        raise MediaError(f"{name}: not a file; name one media file")
    if os.path.getsize(file) == 0:
        raise MediaError(f"{name}: the file is empty")
    if not os.access(file, os.R_OK):
        raise MediaError(f"{name}: no permission to read it")


def _arrays(header: dict, body: bytearray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Frames and windows of an answer."""
    frames = audio = None
    size = 0
    if header["frames"]:
        size = FRAMES * 3 * FRAME_SIZE**2
        frames = np.frombuffer(body[:size], np.uint8).reshape(FRAMES, 3, FRAME_SIZE, FRAME_SIZE)
    if header["audio"]:
        audio = np.frombuffer(body[size:], np.float32).reshape(WINDOWS, WINDOW_SAMPLES)
    return frames, audio


def _decode(source: str, request: dict, limits: Limits) -> tuple[dict, bytearray]:
    """Header and arrays that a child process answers to a request."""
    out, status = _run_child(source, request, limits)
    if len(out) < 8:
        ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        raise MediaError(
            f"{_printable(source)}: the decoder died ({ended}); the file is damaged or exceeds the limits"
        )
    (size,) = struct.unpack("<Q", out[:8])
    header = json.loads(out[8 : 8 + size])
    if "error" in header:
        raise MediaError(f"{_printable(header.get('file', source))}: {header['error']}")
    return header, bytearray(out[8 + size :])


def _run_child(source: str, request: dict, limits: Limits) -> tuple[bytes, int]:
    """Runs nanoemox.media.child; returns what it writes and its exit status.

    The pipe of the request stays open until the child has ended. If it closes earlier, the child knows that
    its parent has died.
    """
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    child_end, our_end = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "nanoemox.media.child"],
            stdin=child_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        os.close(child_end)
        child_end = -1
        try:
            os.write(our_end, json.dumps(request).encode() + b"\n")
            out = child.communicate(timeout=limits.seconds)[0]
        except subprocess.TimeoutExpired:
            raise MediaError(
                f"{_printable(source)}: not read within {limits.seconds:g} s; cut a part, or pass more Limits"
            ) from None
        except BrokenPipeError:  # the child ended before it read the request; its exit status says why
            out = child.communicate()[0]
        finally:
            child.kill()
            child.wait()
    finally:
        for end in (child_end, our_end):
            if end >= 0:
                os.close(end)
    return out, child.returncode
