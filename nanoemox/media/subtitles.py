"""The words of an .srt or .vtt file."""

import html
import os
import re

from .container import Refused, open_container

_MARKUP = re.compile(r"</?[A-Za-z][^>]*>|<\d[\d:.]*>|\{\\[^}]*\}|\\[Nnh]")


def read_subtitle(path: str, start: float | None, end: float | None) -> str:
    """Cues that are shown between start and end, joined by blanks, mark-up removed. Raises Refused."""
    ending = path[-4:].lower()
    if os.path.getsize(path) > 16 << 20:
        raise Refused("more than 16 MiB of subtitles")
    cues, found = [], False
    with open_container(path, max_streams=1, format="srt" if ending == ".srt" else "webvtt") as container:
        for packet in container.demux():
            if not packet.size or packet.pts is None:
                continue
            found = True
            begin = float(packet.pts * packet.time_base)
            stop = begin + float((packet.duration or 0) * packet.time_base)
            if (end is None or begin < end) and (start is None or stop > start):
                try:
                    text = bytes(packet).decode("utf-8")
                except UnicodeDecodeError as error:
                    raise Refused("not in UTF-8; convert it") from error
                cues.append(" ".join(html.unescape(_MARKUP.sub(" ", text)).split()))
    if not found:
        raise Refused(f"no subtitle in it; it is not a {ending} file")
    return " ".join(filter(None, cues))
