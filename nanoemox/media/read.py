"""Any file FFmpeg reads -> a Clip. The file is decoded in a child process that can be killed, never in this one."""

import json
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
    """Read what the model needs of a media file, or of its part start <= t < end (seconds from its beginning).

    Args:
        subtitle: a name ending in .srt or .vtt is a file, which must exist and is cut to the same part; else the words.

    Raises:
        MediaError: one line that names the file, what is wrong with it and what to do.
        UsageError: start and end do not describe a part.
    """
    began = time.perf_counter()
    source = os.fsdecode(path)
    if not all(t is None or 0 <= t < float("inf") for t in (start, end)) or (
        end is not None and (start or 0) >= end
    ):
        raise UsageError(f"start {start} and end {end} must be seconds with 0 <= start < end")
    words = None if subtitle is None else os.fsdecode(subtitle).strip()
    words_file = words if words is not None and words.lower().endswith((".srt", ".vtt")) else None
    for file in (source, words_file):
        if file is not None:
            _check_file(file)
    limits = limits or Limits()
    request = {"path": source, "subtitle": words_file, "start": start, "end": end, "limits": asdict(limits)}
    header, body = _decode(source, request, limits)
    frames, audio = header.pop("frames"), header.pop("audio")
    split = FRAMES * 3 * FRAME_SIZE**2 if frames else 0
    return Clip(
        frames=np.frombuffer(body[:split], np.uint8).reshape(FRAMES, 3, FRAME_SIZE, FRAME_SIZE)
        if frames
        else None,
        audio=np.frombuffer(body[split:], np.float32).reshape(WINDOWS, WINDOW_SAMPLES) if audio else None,
        subtitle=(header.pop("subtitle") if words_file else words) or None,
        source=source,
        duration=header["duration"],
        frame_times=header["frame_times"],
        window_starts=header["window_starts"],
        notes=header["notes"],
        read_seconds=time.perf_counter() - began,
    )


def _shown(file: str) -> str:
    """A name fit for a line of text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in file)


def _check_file(file: str) -> None:
    shown = _shown(file)
    if not os.path.exists(file):
        raise MediaError(f"{shown}: no such file")
    if not os.path.isfile(file):
        raise MediaError(f"{shown}: not a file; name one media file")
    if os.path.getsize(file) == 0:
        raise MediaError(f"{shown}: the file is empty")
    if not os.access(file, os.R_OK):
        raise MediaError(f"{shown}: no permission to read it")


def _decode(source: str, request: dict, limits: Limits) -> tuple[dict, bytearray]:
    """Runs nanoemox.media.child in a child. The pipe with its request stays open: its end is the parent's death."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    child_end, our_end = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "nanoemox.media.child"],
            stdin=child_end, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True,
        )  # fmt: skip
        os.close(child_end)
        child_end = -1
        try:
            os.write(our_end, json.dumps(request).encode() + b"\n")
            out = child.communicate(timeout=limits.seconds)[0]
        except subprocess.TimeoutExpired:
            raise MediaError(
                f"{_shown(source)}: not read within {limits.seconds:g} s; cut a part, or pass more Limits"
            ) from None
        except BrokenPipeError:  # it ended before it read the request; its exit status says why
            out = child.communicate()[0]
        finally:
            child.kill()
            child.wait()
    finally:
        for end in (child_end, our_end):
            if end >= 0:
                os.close(end)
    if len(out) < 8:
        how = (
            signal.Signals(-child.returncode).name
            if child.returncode < 0
            else f"exit status {child.returncode}"
        )
        raise MediaError(
            f"{_shown(source)}: the decoder died ({how}); the file is damaged or needs more than the limits"
        )
    (size,) = struct.unpack("<Q", out[:8])
    header = json.loads(out[8 : 8 + size])
    if "error" in header:
        raise MediaError(f"{_shown(header.get('file', source))}: {header['error']}")
    return header, bytearray(out[8 + size :])
