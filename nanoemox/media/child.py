"""The child process of nanoemox.media: it reads one request from stdin, writes one answer to stdout and ends.

It needs neither torch nor the network. A request is a line of JSON. An answer is the length of its header
(uint64), the header (JSON) and the arrays.
"""

import json
import os
import resource
import struct
import threading

import av
import numpy as np

from .container import Refused
from .pictures import read_pictures
from .sound import read_sound
from .source import Source
from .subtitles import read_subtitle
from .survey import survey


def answer(request: dict) -> tuple[dict, list[np.ndarray]]:
    """Header and arrays (frames, windows) for a request of `read_clip`. Raises Refused."""
    start, end = request["start"], request["end"]
    words = ""
    if request["subtitle"]:
        try:
            words = read_subtitle(request["subtitle"], start, end)
        except Refused as refused:
            return {"error": str(refused), "file": request["subtitle"]}, []
    source = Source(request["path"], start, end, request["limits"])
    facts = survey(source)
    pictures = read_pictures(source, facts)
    sound = read_sound(source, facts)
    file_end = max(facts.end, pictures.end) if pictures else facts.end
    if pictures is None and sound is None:
        part = _part(start, end, file_end)
        raise Refused(f"no frame and no sound can be decoded {part}")
    part_end = file_end if end is None else min(end, file_end)
    counts = source.damaged.items()
    damaged = [f"{count} {kind} packets could not be decoded" for kind, count in counts if count]
    header = {
        "frames": pictures is not None,
        "audio": sound is not None,
        "subtitle": words,
        "duration": max(part_end - (start or 0.0), 0.0),
        "frame_times": pictures.times if pictures else [],
        "window_starts": sound.starts if sound else [],
        "notes": source.notes + damaged,
    }
    arrays = []
    if pictures:
        arrays.append(pictures.frames)
    if sound:
        arrays.append(sound.windows)
    return header, arrays


def _part(start: float | None, end: float | None, file_end: float) -> str:
    """Names a part of a file in a message."""
    if start is None and end is None:
        return "in it"
    begin = start or 0.0
    if end is None:
        return f"after {begin:g} s of its {file_end:.2f} s"
    return f"between {begin:g} s and {end:g} s of its {file_end:.2f} s"


def _die_with_parent() -> None:
    """Ends this process, whatever the decoder is doing, once stdin closes: then the parent has ended."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _limit(kind: int, maximum: int) -> None:
    """Limits a resource of this process; a lower limit, of a batch system for one, stays."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        maximum = min(maximum, hard)
    resource.setrlimit(kind, (maximum, maximum))


def main() -> None:
    """Serve one request."""
    request = json.loads(os.fdopen(os.dup(0), "rb", buffering=0).readline())
    limits = request["limits"]
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_CPU, int(limits["seconds"] * (os.cpu_count() or 1)) + 1)
    _limit(resource.RLIMIT_CORE, 0)
    av.logging.set_level(None)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but the answer reaches the parent
    arrays: list[np.ndarray] = []
    try:
        header, arrays = answer(request)
    except Refused as refused:
        header = {"error": str(refused)}
    except (MemoryError, ImportError):  # the second is a library for which no memory could be mapped
        header = {"error": f"needs more than the allowed {limits['memory'] >> 20} MiB of memory to decode"}
    except OSError as error:  # FFmpeg's errors are OSErrors
        header = {"error": f"damaged: {error.strerror or error}"}
    except Exception as error:  # the parent reports it; a traceback of this process would reach nobody
        header = {"error": f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})"}
    text = json.dumps(header).encode()
    out.write(struct.pack("<Q", len(text)) + text)
    for block in arrays:
        out.write(block.tobytes())
    out.flush()
    os._exit(0)  # the reading thread would hold up an ordinary exit


if __name__ == "__main__":
    main()
