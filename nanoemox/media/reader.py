"""One pass after another over one file, none of which keeps more than it returns (architecture section 13)."""

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np

from ..config import SAMPLE_RATE, WINDOW_SAMPLES
from .container import Refused, cut_off_wave, image, mono, open_container, pick_stream
from .positions import frame_indices, window_starts
from .resample import Resampler

# Containers with an index or a stated duration, so that a cut-off file can be told.
_INDEXED = {"mov", "matroska", "flv"}


class Reader:
    """`survey` first, then `pictures` and `sound`. Times are seconds from where the file begins."""

    def __init__(self, path: str, start: float | None, end: float | None, limits: dict):
        self.path, self.limits = path, limits
        self.start = -math.inf if start is None else start
        self.end = math.inf if end is None else end
        self.notes: list[str] = []
        self.damaged = {"video": 0, "audio": 0}

    @contextmanager
    def open(self) -> Iterator[tuple[Any, Any, Any]]:
        """container, video stream | None, audio stream | None; what cannot be decoded is noted once."""
        with open_container(self.path, self.limits["streams"]) as container:
            streams = []
            for kind in ("video", "audio"):
                stream, why_not = pick_stream(container, kind)
                streams.append(stream)
                if why_not and why_not not in self.notes:
                    self.notes.append(why_not)
            starts = [
                s.start_time * s.time_base for s in streams if s is not None and s.start_time is not None
            ]
            # A file may begin late (transport streams do) or before 0; its own clock is counted from there, exactly.
            # A little before 0 is the priming of an audio encoder, and the clock is meant as it stands.
            origin = min(starts, default=Fraction(0))
            self.origin = Fraction(0) if -0.5 < origin < 0 else origin
            yield container, *streams

    def time(self, thing: Any) -> float:
        return float(thing.pts * thing.time_base - self.origin)

    def inside(self, time: float) -> bool:
        return self.start <= time < self.end

    def decode(self, packet: Any, kind: str) -> list:
        try:
            return packet.decode()
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            self.damaged[kind] += 1
            return []

    def packets(self, container: Any, *streams: Any) -> Iterator[Any]:
        try:
            yield from container.demux(*streams)
        except (av.error.InvalidDataError, av.error.EOFError) as error:
            if _INDEXED & set(container.format.name.split(",")):
                raise Refused(
                    "truncated or damaged: the file ends before its index does; copy it again"
                ) from error
            if (note := "there is something after the end of its streams") not in self.notes:
                self.notes.append(note)

    # -- first pass: how much there is ------------------------------------------------------------------------------

    def survey(self) -> None:
        """Counts frames and samples of the part, exactly; the sound is decoded for it."""
        self.pts = array("q")  # of every frame in the part
        self.keys: list[tuple[int, int | None]] = []  # pts and dts of key frames
        self.timed = True  # every packet says when it is shown
        self.rate, self.samples, self.last = 0, 0, 0.0
        if cut_off_wave(self.path):
            raise Refused("truncated: its header states more than it holds; copy it again")
        with self.open() as (container, video, audio):
            if video is None and audio is None:
                raise Refused(self.notes[0] if self.notes else "no video and no audio stream in it")
            self.has_video = video is not None
            if video is not None:
                self._check_size(video.codec_context.width, video.codec_context.height)
                self.pace = float(1 / video.guessed_rate) if video.guessed_rate else 0.0
            # A picture of an animated PNG may build on pictures before what is marked as a key.
            self.seekable = video is not None and video.codec_context.name != "apng"
            hides = video is not None and video.codec_context.name == "vp8"
            self.begin = 0.0
            if video is not None and video.start_time is not None:
                self.begin = float(video.start_time * video.time_base - self.origin)
            gap = previous = 0.0
            clocks: dict[int, float] = {}
            for packet in self.packets(container):
                if (stamp := packet.dts if packet.pts is None else packet.pts) is not None:
                    seconds = float((stamp + (packet.duration or 0)) * packet.time_base - self.origin)
                    gap, previous = max(gap, seconds - previous), seconds
                    self.last = max(self.last, seconds)
                    if seconds > self.limits["duration"]:
                        raise Refused(
                            f"longer than the allowed {self.limits['duration']:g} s; cut it beforehand"
                        )
                if packet.dts is not None and packet.stream in (video, audio):
                    seconds = float(packet.dts * packet.time_base)
                    if clocks.get(packet.stream.index, seconds) - seconds > 1:
                        self._clock_restarts()
                    clocks[packet.stream.index] = seconds
                if packet.stream is video and packet.size:
                    if packet.pts is None:
                        self.timed = False
                    elif not packet.is_discard and not (
                        hides and not bytes(packet)[0] & 0x10
                    ):  # VP8's hidden frames
                        if self.inside(self.time(packet)):
                            self.pts.append(packet.pts)
                        if packet.is_keyframe:
                            self.keys.append((packet.pts, packet.dts))
                elif packet.stream is audio:
                    for frame in self.decode(packet, "audio"):
                        self._count(frame)
            self._check_whole(container, gap)
        self.pts = array("q", sorted(self.pts))
        self.keys.sort(key=lambda key: key[0])
        if len(set(self.pts)) < len(self.pts):
            self.timed = False

    def _clock_restarts(self) -> None:
        """Files glued together: whole they can be read, but a time no longer names one place."""
        if not math.isinf(self.start) or not math.isinf(self.end):
            raise Refused(
                "its clock restarts midway, so no part of it can be told; convert it first, or read it whole"
            )
        self.timed = False
        if (
            note := "its clock restarts midway; frame times are counted from the frame rate"
        ) not in self.notes:
            self.notes.append(note)

    def _check_whole(self, container: Any, gap: float) -> None:
        """Refuses a file that holds much less than its header states."""
        if not container.duration or not _INDEXED & set(container.format.name.split(",")):
            return
        stated = (
            container.duration / av.time_base
        )  # some files state their length, some the time at their end
        missing = stated - (self.last + float(self.origin))
        if missing > max(0.5, 0.02 * stated, 2 * gap):
            raise Refused(
                f"truncated: it holds {self.last:.2f} s of the {stated:.2f} s that it states; copy it again"
            )

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits["pixels"]:
            raise Refused(f"frames of {width}x{height}, {self.limits['pixels']} pixels are allowed")

    def _count(self, frame: Any) -> None:
        if not self.rate:
            self.rate = frame.sample_rate
            if not 100 <= self.rate <= 768_000:
                raise Refused(f"a sample rate of {self.rate} Hz, 100 to 768000 are allowed")
        low, high = self._part(frame)
        self.samples += high - low

    def _part(self, frame: Any) -> tuple[int, int]:
        """Samples [low, high) of an audio frame that lie in the part."""
        if frame.sample_rate != self.rate:
            raise Refused(
                f"its sample rate changes from {self.rate} to {frame.sample_rate} Hz midway; convert it first"
            )
        if frame.pts is None:
            return 0, frame.samples
        begin = frame.pts * frame.time_base - self.origin

        def first(time: float) -> int:
            """The first sample at or after a time, to the precision that a float has."""
            if math.isinf(time):
                return 0 if time < 0 else frame.samples
            sample = math.ceil((Fraction(time) - begin) * self.rate)
            if float(begin + Fraction(sample - 1, self.rate)) >= time:
                sample -= 1
            return min(max(sample, 0), frame.samples)

        return first(self.start), first(self.end)

    # -- sound ------------------------------------------------------------------------------------------------------

    def sound(self) -> tuple[np.ndarray, list[int]] | None:
        """Windows float32 [8,32000], each minus its mean, and their first samples."""
        if not self.samples:
            return None
        resampler = Resampler(self.rate, SAMPLE_RATE) if self.rate != SAMPLE_RATE else None
        total = resampler.length(self.samples) if resampler else self.samples
        starts = window_starts(total)
        stops = [min(start + WINDOW_SAMPLES, total) for start in starts]
        spans = [resampler.needs(*ends) if resampler else ends for ends in zip(starts, stops, strict=True)]
        pieces = [np.zeros(high - low, np.float32) for low, high in spans]
        position, self.damaged["audio"] = 0, 0
        with self.open() as (container, _, audio):
            for packet in self.packets(container, audio):
                for frame in self.decode(packet, "audio"):
                    first, last = self._part(frame)
                    if first == last:
                        continue
                    wave = mono(frame)[first:last]
                    for piece, (low, high) in zip(pieces, spans, strict=True):
                        begin, stop = max(low, position), min(high, position + len(wave))
                        if begin < stop:
                            piece[begin - low : stop - low] = wave[begin - position : stop - position]
                    position += len(wave)
        windows = np.zeros((len(starts), WINDOW_SAMPLES), np.float32)
        for row, piece, (low, _), start, stop in zip(windows, pieces, spans, starts, stops, strict=True):
            row[: stop - start] = resampler.run(piece, low, start, stop) if resampler else piece
        if not np.isfinite(windows).all():
            raise Refused("the sound holds samples that are not numbers; encode it again")
        return windows - windows.mean(1, keepdims=True, dtype=np.float64).astype(np.float32), starts

    # -- picture ----------------------------------------------------------------------------------------------------

    def pictures(self) -> tuple[np.ndarray, list[float]] | None:
        """Frames uint8 [8,3,224,224] and their times."""
        if not self.has_video or (self.timed and not self.pts):
            return None
        found = self._by_seeking() if self.timed and self.seekable else None
        return found or self._in_order()

    def _by_seeking(self) -> tuple[np.ndarray, list[float]] | None:
        """Decodes only from a key frame to a wanted frame. None if a wanted frame is not where it should be."""
        wanted = [self.pts[i] for i in frame_indices(len(self.pts))]
        images: dict[int, np.ndarray] = {}
        with self.open() as (container, video, _):
            decoded: Iterator[Any] | None = None
            reached: int | None = None  # nothing shown before this is still to come
            for pts in sorted(set(wanted)):
                at = bisect_right(self.keys, pts, key=lambda key: key[0]) - 1
                if at < 0:
                    return None
                if decoded is None or (reached is not None and self.keys[at][0] > reached):
                    decoded = self._from_key(container, video, at)
                frame = next((f for f in decoded if f.pts is None or f.pts >= pts), None)
                if frame is None or frame.pts != pts:
                    return None
                reached = pts
                images[pts] = self._image(frame)
            scale = video.time_base
        times = [float(pts * scale - self.origin) for pts in wanted]
        return np.stack([images[pts] for pts in wanted]), times

    def _from_key(self, container: Any, video: Any, at: int) -> Iterator[Any]:
        """Frames from a key frame on, nothing if it cannot be reached or is none that decoding can begin at."""
        pts, dts = self.keys[at]
        if (
            at > 0
            and not self._seek(container, video, pts, pts)
            and (
                dts is None or not self._seek(container, video, dts - 1, pts)  # transport streams seek by dts
            )
        ):
            return
        begun = whole = at == 0
        for packet in self.packets(container, video):
            if not begun:
                # Seeking may land between key frames, or past the one that is wanted.
                if not packet.is_keyframe or packet.pts is None:
                    continue
                begun = True
            for frame in self.decode(packet, "video"):
                if not whole and not frame.key_frame:
                    return  # a recovery point, from which pictures become whole only by and by
                whole = True
                yield frame

    def _seek(self, container: Any, video: Any, stamp: int, wanted: int) -> bool:
        """Whether the key frame `wanted`, or one before it, comes next after seeking to `stamp`; then seeks there."""
        try:
            container.seek(stamp, stream=video)
            landed = next(
                (p for p in self.packets(container, video) if p.is_keyframe and p.pts is not None), None
            )
            container.seek(stamp, stream=video)  # the look has moved on
            return landed is not None and landed.pts <= wanted
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            return False

    def _in_order(self) -> tuple[np.ndarray, list[float]] | None:
        """Two passes over every frame: count, then pick. For files without times and for what seeking cannot reach."""
        count, last = 0, 0.0
        for time, _ in self._shown():
            count, last = count + 1, time
        if not count:
            return None
        wanted = frame_indices(count)
        picked = {
            i: (self._image(frame), time) for i, (time, frame) in enumerate(self._shown()) if i in wanted
        }
        if not self.timed:
            self.last = max(self.last, last + self.pace)
        return np.stack([picked[i][0] for i in wanted]), [picked[i][1] for i in wanted]

    def _shown(self) -> Iterator[tuple[float, Any]]:
        """Every frame of the part in the order of showing, with its time."""
        self.damaged["video"] = 0
        with self.open() as (container, video, _):
            frames = (f for packet in self.packets(container, video) for f in self.decode(packet, "video"))
            for i, frame in enumerate(frames):
                time = (
                    self.time(frame) if self.timed and frame.pts is not None else self.begin + i * self.pace
                )
                if self.inside(time):
                    yield time, frame

    def _image(self, frame: Any) -> np.ndarray:
        self._check_size(frame.width, frame.height)
        return image(frame)
