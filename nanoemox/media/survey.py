"""The first pass over a file: exactly how many frames and samples (docs/architecture.md section 13)."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import av

from .container import Refused, cut_off_wave
from .source import Source, Streams


@dataclass
class Survey:
    """What the first pass found in the part of a file.

    Attributes:
        pts: presentation stamps of the frames, ascending.
        keys: presentation and decoding stamps of the key frames of the whole file, by presentation.
        timed: whether every frame has a stamp of its own.
        has_video: whether there is a video stream.
        seekable: whether decoding can begin at a key frame.
        pace: seconds from frame to frame by the stated frame rate, 0 if there is none.
        begin: when the first frame is shown by the header, in seconds from where the file begins.
        rate: sample rate in Hz, 0 without sound.
        samples: audio samples at that rate.
        end: when the last packet of the file ends, in seconds from where the file begins.
    """

    pts: array = field(default_factory=lambda: array("q"))
    keys: list[tuple[int, int | None]] = field(default_factory=list)
    timed: bool = True
    has_video: bool = False
    seekable: bool = False
    pace: float = 0.0
    begin: float = 0.0
    rate: int = 0
    samples: int = 0
    end: float = 0.0


def survey(source: Source) -> Survey:
    """Counts the frames and samples of the part; the sound is decoded for it. Raises Refused."""
    if cut_off_wave(source.path):
        raise Refused("truncated: its header states more than it holds; copy it again")
    with source.open() as streams:
        if streams.video is None and streams.audio is None:
            raise Refused(source.notes[0] if source.notes else "no video and no audio stream in it")
        surveyor = _Surveyor(source, streams)
        for packet in source.packets(streams):
            surveyor.read(packet)
        surveyor.check_whole()
    return surveyor.finish()


class _Surveyor:
    """One pass over the packets of a file."""

    def __init__(self, source: Source, streams: Streams):
        self.source, self.streams = source, streams
        self.result = Survey(has_video=streams.video is not None)
        self.is_vp8 = False
        self.previous = 0.0  # when the packet before ends
        self.gap = 0.0  # the longest step from one packet's end to the next one's
        self.clocks: dict[int, float] = {}  # stream -> latest decoding time
        if streams.video is not None:
            self._read_header(streams.video)

    def _read_header(self, video: Any) -> None:
        context, result = video.codec_context, self.result
        self.source.check_size(context.width, context.height)
        if video.guessed_rate:
            result.pace = float(1 / video.guessed_rate)
        # A picture of an animated PNG may build on pictures before what is marked as a key.
        result.seekable = context.name != "apng"
        self.is_vp8 = context.name == "vp8"
        if video.start_time is not None:
            result.begin = float(video.start_time * video.time_base - self.streams.origin)

    def read(self, packet: Any) -> None:
        self._follow_end(packet)
        self._follow_clock(packet)
        if packet.stream is self.streams.video and packet.size:
            self._count_frame(packet)
        elif packet.stream is self.streams.audio:
            for frame in self.source.decode(packet, "audio"):
                self._count_samples(frame)

    def _follow_end(self, packet: Any) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            return
        end = float((stamp + (packet.duration or 0)) * packet.time_base - self.streams.origin)
        self.gap = max(self.gap, end - self.previous)
        self.previous = end
        self.result.end = max(self.result.end, end)
        allowed = self.source.limits["duration"]
        if end > allowed:
            raise Refused(f"longer than the allowed {allowed:g} s; cut it beforehand")

    def _follow_clock(self, packet: Any) -> None:
        """Notices files that were glued together: a time no longer names one place in them."""
        if packet.dts is None or packet.stream not in (self.streams.video, self.streams.audio):
            return
        seconds = float(packet.dts * packet.time_base)
        latest = self.clocks.get(packet.stream.index, seconds)
        self.clocks[packet.stream.index] = seconds
        if latest - seconds <= 1:
            return
        if not self.source.is_whole:
            raise Refused(
                "its clock restarts midway, so no part of it is defined; convert it first, or read it whole"
            )
        self.result.timed = False
        self.source.note("its clock restarts midway; frame times are counted from the frame rate")

    def _count_frame(self, packet: Any) -> None:
        if packet.pts is None:
            self.result.timed = False
            return
        if packet.is_discard or (self.is_vp8 and _is_hidden(packet)):
            return
        if self.source.inside(self.streams.time(packet)):
            self.result.pts.append(packet.pts)
        if packet.is_keyframe:
            self.result.keys.append((packet.pts, packet.dts))

    def _count_samples(self, frame: Any) -> None:
        result = self.result
        if not result.rate:
            result.rate = frame.sample_rate
            if not 100 <= result.rate <= 768_000:
                raise Refused(f"a sample rate of {result.rate} Hz, 100 to 768000 are allowed")
        low, high = self.source.samples_inside(frame, result.rate, self.streams.origin)
        result.samples += high - low

    def check_whole(self) -> None:
        """Refuses a file that holds much less than its header states."""
        container = self.streams.container
        if not container.duration or not self.streams.is_indexed:
            return
        # Some files state their length, some the time at their end.
        stated = container.duration / av.time_base
        missing = stated - (self.result.end + float(self.streams.origin))
        if missing > max(0.5, 0.02 * stated, 2 * self.gap):
            raise Refused(
                f"truncated: it holds {self.result.end:.2f} s of the {stated:.2f} s that it states; "
                "copy it again"
            )

    def finish(self) -> Survey:
        result = self.result
        result.pts = array("q", sorted(result.pts))
        result.keys.sort(key=lambda key: key[0])
        if len(set(result.pts)) < len(result.pts):
            result.timed = False
        return result


def _is_hidden(packet: Any) -> bool:
    """Whether a VP8 packet holds a frame that is never shown."""
    return not bytes(packet)[0] & 0x10
