"""A media file, read in several passes, and the part of it to read (docs/architecture.md section 13)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from .container import Refused, open_container, pick_stream

# Containers with an index or a stated duration, which tell whether a file was cut off.
INDEXED = {"mov", "matroska", "flv"}


@dataclass(frozen=True)
class Streams:
    """An open file. `origin` is the time in seconds at which the file begins by its own clock."""

    container: Any
    video: Any | None
    audio: Any | None
    origin: Fraction

    @property
    def is_indexed(self) -> bool:
        return bool(INDEXED & set(self.container.format.name.split(",")))

    def time(self, stamped: Any) -> float:
        """When a packet or frame is shown: seconds from where the file begins."""
        return float(stamped.pts * stamped.time_base - self.origin)


class Source:
    """A file and the part start <= t < end of it, in seconds from where the file begins.

    Attributes:
        notes: what was odd about the file, one line each.
        damaged: "video" and "audio" -> packets that could not be decoded in the last pass over the stream.
    """

    def __init__(self, path: str, start: float | None, end: float | None, limits: dict):
        self.path, self.limits = path, limits
        self.start = -math.inf if start is None else start
        self.end = math.inf if end is None else end
        self.notes: list[str] = []
        self.damaged = {"video": 0, "audio": 0}

    @property
    def is_whole(self) -> bool:
        return math.isinf(self.start) and math.isinf(self.end)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def inside(self, time: float) -> bool:
        return self.start <= time < self.end

    @contextmanager
    def open(self) -> Iterator[Streams]:
        """The file with its first video and audio stream. One that cannot be decoded is None and noted."""
        with open_container(self.path, self.limits["streams"]) as container:
            video, video_problem = pick_stream(container, "video")
            audio, audio_problem = pick_stream(container, "audio")
            for problem in (video_problem, audio_problem):
                if problem:
                    self.note(problem)
            yield Streams(container, video, audio, _origin([video, audio]))

    def packets(self, streams: Streams, *chosen: Any) -> Iterator[Any]:
        """Packets of the chosen streams, by default of all. Raises Refused if an indexed file is cut off."""
        try:
            yield from streams.container.demux(*chosen)
        except (av.error.InvalidDataError, av.error.EOFError) as error:
            if streams.is_indexed:
                raise Refused(
                    "truncated or damaged: the file ends before its index does; copy it again"
                ) from error
            self.note("there is something after the end of its streams")

    def decode(self, packet: Any, kind: str) -> list:
        """Frames of a packet; a packet that cannot be decoded is counted in `damaged`."""
        try:
            return packet.decode()
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            self.damaged[kind] += 1
            return []

    def check_size(self, width: int, height: int) -> None:
        if width * height > self.limits["pixels"]:
            raise Refused(f"frames of {width}x{height}, {self.limits['pixels']} pixels are allowed")

    def samples_inside(self, frame: Any, rate: int, origin: Fraction) -> tuple[int, int]:
        """Samples [low, high) of an audio frame that lie in the part."""
        if frame.sample_rate != rate:
            raise Refused(
                f"its sample rate changes from {rate} to {frame.sample_rate} Hz midway; convert it first"
            )
        if frame.pts is None:
            return 0, frame.samples
        begin = frame.pts * frame.time_base - origin
        return _first_sample(self.start, begin, frame), _first_sample(self.end, begin, frame)


def _origin(streams: list[Any]) -> Fraction:
    """When the file begins by its own clock: late (transport streams) or before 0, exactly."""
    starts = [
        stream.start_time * stream.time_base
        for stream in streams
        if stream is not None and stream.start_time is not None
    ]
    origin = min(starts, default=Fraction(0))
    # A little before 0 is the priming of an audio encoder: the clock itself begins at 0.
    return Fraction(0) if -0.5 < origin < 0 else origin


def _first_sample(time: float, begin: Fraction, frame: Any) -> int:
    """The first sample at or after a time, to the precision of a float, of a frame that starts at `begin`."""
    if math.isinf(time):
        return 0 if time < 0 else frame.samples
    rate = frame.sample_rate
    sample = math.ceil((Fraction(time) - begin) * rate)
    if float(begin + Fraction(sample - 1, rate)) >= time:
        sample -= 1
    return min(max(sample, 0), frame.samples)
