"""The words of an .srt or .vtt file."""

import html
import os
import re

from .container import Refused, open_container

_MARKUP = re.compile(r"</?[A-Za-z][^>]*>|<\d[\d:.]*>|\{\\[^}]*\}|\\[Nnh]")


def read_subtitle(path: str, start: float | None, end: float | None) -> str:
    """The cues shown between start and end, in one line without mark-up. Raises Refused."""
    suffix = path[-4:].lower()
    if os.path.getsize(path) > 16 << 20:
        raise Refused("more than 16 MiB of subtitles")
    cues, is_empty = [], True
    format_ = "srt" if suffix == ".srt" else "webvtt"
    with open_container(path, max_streams=1, format=format_) as container:
        for packet in container.demux():
            if not packet.size or packet.pts is None:
                continue
            is_empty = False
            begin = float(packet.pts * packet.time_base)
            stop = begin + float((packet.duration or 0) * packet.time_base)
            if (end is None or begin < end) and (start is None or stop > start):
                cues.append(_plain(bytes(packet)))
    if is_empty:
        raise Refused(f"no subtitle in it; it is not a {suffix} file")
    return " ".join(filter(None, cues))


def _plain(cue: bytes) -> str:
    try:
        text = cue.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("not in UTF-8; convert it") from error
    return " ".join(html.unescape(_MARKUP.sub(" ", text)).split())
