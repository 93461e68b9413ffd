"""The child process of nanoemox.media: one request on stdin, one answer on stdout, then it is gone.

It needs neither torch nor the network. Request: a line of JSON. Answer: length of the header, header (JSON), arrays.
"""

import json
import os
import resource
import struct
import threading

import av
import numpy as np

from .container import Refused
from .reader import Reader
from .subtitles import read_subtitle


def answer(request: dict) -> tuple[dict, list[np.ndarray]]:
    start, end = request["start"], request["end"]
    words = ""
    if request["subtitle"]:
        try:
            words = read_subtitle(request["subtitle"], start, end)
        except Refused as refused:
            return {"error": str(refused), "file": request["subtitle"]}, []
    reader = Reader(request["path"], start, end, request["limits"])
    reader.survey()
    pictures, sound = reader.pictures(), reader.sound()
    begin, last = start or 0.0, reader.last
    if pictures is None and sound is None:
        until = "" if end is None else f" and {end:g} s"
        part = f"{'after' if end is None else 'between'} {begin:g} s{until} of its {last:.2f} s"
        raise Refused(f"no frame and no sound can be decoded {'in it' if start is end is None else part}")
    damaged = [f"{n} {kind} packets could not be decoded" for kind, n in reader.damaged.items() if n]
    header = {
        "frames": pictures is not None,
        "audio": sound is not None,
        "subtitle": words,
        "duration": max((last if end is None else min(end, last)) - begin, 0.0),
        "frame_times": pictures[1] if pictures else [],
        "window_starts": sound[1] if sound else [],
        "notes": reader.notes + damaged,
    }
    return header, [pair[0] for pair in (pictures, sound) if pair]


def _die_with_parent() -> None:
    """The parent keeps our stdin open; when it ends, so do we, whatever the decoder is doing."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _limit(kind: int, most: int) -> None:
    """No more of it than this, nor than the process may have: a batch system's limit can be lower."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def main() -> None:
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
    except (
        MemoryError,
        ImportError,
    ):  # FFmpeg's own is the first; a library that cannot be mapped the second
        header = {"error": f"needs more than the allowed {limits['memory'] >> 20} MiB of memory to decode"}
    except OSError as error:  # FFmpeg's errors are
        header = {"error": f"damaged: {error.strerror or error}"}
    except Exception as error:  # told to the parent, which tells the user; a child's traceback helps neither
        header = {"error": f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})"}
    text = json.dumps(header).encode()
    out.write(struct.pack("<Q", len(text)) + text)
    for block in arrays:
        out.write(block.tobytes())
    out.flush()
    os._exit(0)  # the reading thread would hold up an ordinary exit


if __name__ == "__main__":
    main()
