"""The child process of nanoemox.media: one request on stdin, one answer on stdout, then it is gone.

It needs neither torch nor the network. Request: a line of JSON. Answer: length of the header, header (JSON), arrays.
"""

import json
import os
import resource
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from .config import FRAME_SIZE, SAMPLE_RATE, WINDOW_SAMPLES
from .resample import Resampler
from .sampling import frame_indices, window_starts

# Demuxers that open other files or addresses, or devices. Everything else that FFmpeg knows is allowed.
_REFUSED = {
    "hls", "concat", "dash", "webm_dash_manifest", "imf", "sdp", "rtsp", "rtp", "rtp_mpegts", "sap", "image2", "lavfi",
    "alsa", "fbdev", "oss", "video4linux2", "v4l2", "x11grab", "vapoursynth", "avisynth", "tty",
}  # fmt: skip
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"v=0", b"[playlist]")
# Containers whose header states how long they are, so that a cut-off file can be told.
_STATES_DURATION = {"mov", "matroska", "avi", "flv", "wav"}


class Refused(Exception):
    """Why this file cannot be read."""


class _File:
    """A file without a name: FFmpeg judges it by its content, and no pattern in a name means anything."""

    def __init__(self, path: str):
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.read, self.seek, self.tell = self.file.read, self.file.seek, self.file.tell


@contextmanager
def _open(path: str, limits: dict, format: str | None = None) -> Iterator[Any]:
    allowed = {name for names in av.formats_available for name in names.split(",")} - _REFUSED
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(sorted(allowed)),
    }
    try:
        container = av.open(_File(path), format=format, options=options, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        with open(path, "rb") as file:
            head = file.read(4096)
        if any(mark in head for mark in _PLAYLISTS):
            raise Refused("a playlist, which names other files; name the media file itself") from error
        if isinstance(error, av.error.MemoryError):
            raise
        raise Refused(
            f"not a media file that FFmpeg can read, or its beginning or end is missing ({error.strerror})"
        ) from error
    try:
        if len(container.streams) > limits["streams"]:
            raise Refused(f"{len(container.streams)} streams, {limits['streams']} are allowed")
        yield container
    finally:
        container.close()


class Reader:
    """One pass after another over one file, none of which keeps more than it returns."""

    def __init__(self, path: str, start: float | None, end: float | None, limits: dict):
        self.path, self.limits = path, limits
        self.start = 0.0 if start is None else start
        self.end = float("inf") if end is None else end
        self.damaged = {"video": 0, "audio": 0}

    def inside(self, time: float) -> bool:
        return self.start <= time < self.end

    @contextmanager
    def open(self) -> Iterator[tuple[Any, Any, Any]]:
        """container, video stream | None, audio stream | None."""
        with _open(self.path, self.limits) as container:
            video, audio = (container.streams.best(kind) for kind in ("video", "audio"))
            if video is not None and video.disposition & av.stream.Disposition.attached_pic:
                video = None  # cover art is not a picture of anyone
            if video is not None:
                self.check_size(video.codec_context.width, video.codec_context.height)
                video.thread_type = "AUTO"
            # A file may begin late (transport streams do); its own clock is counted from there.
            self.origin = max(container.start_time or 0, 0) / av.time_base
            yield container, video, audio

    def check_size(self, width: int, height: int) -> None:
        if width * height > self.limits["pixels"]:
            raise Refused(f"frames of {width}x{height}, {self.limits['pixels']} pixels are allowed")

    def time(self, thing: Any) -> float:
        return float(thing.pts * thing.time_base) - self.origin

    def decode(self, packet: Any, kind: str) -> list:
        try:
            return packet.decode()
        except av.error.InvalidDataError:
            self.damaged[kind] += 1
            return []

    def packets(self, container: Any, *streams: Any) -> Iterator[Any]:
        try:
            yield from container.demux(*streams)
        except (av.error.InvalidDataError, av.error.EOFError) as error:
            raise Refused("truncated or damaged: the file ends before its index does") from error

    # -- first pass: how much there is ------------------------------------------------------------------------------

    def survey(self) -> None:
        """Counts frames and samples of the part, exactly; the sound is decoded for it."""
        self.pts = array("q")  # of every frame in the part
        self.key_pts = array("q")
        self.timed = True  # every packet says when it is shown
        self.rate, self.samples = 0, 0
        last = 0.0
        with self.open() as (container, video, audio):
            if video is None and audio is None:
                raise Refused("no video and no audio stream in it")
            self.has_video, self.has_audio = video is not None, audio is not None
            states = _STATES_DURATION & set(container.format.name.split(","))
            promised = container.duration / av.time_base if container.duration and states else 0.0
            stills = video is not None and video.codec_context.name == "vp8"
            for packet in self.packets(container):
                if packet.dts is not None or packet.pts is not None:
                    stamp = packet.dts if packet.pts is None else packet.pts
                    seconds = float((stamp + (packet.duration or 0)) * packet.time_base) - self.origin
                    last = max(last, seconds)
                    if seconds > self.limits["duration"]:
                        raise Refused(
                            f"longer than the allowed {self.limits['duration']:g} s; cut a part of it beforehand"
                        )
                if packet.stream is video and packet.size:
                    if packet.pts is None:
                        self.timed = False
                    elif not packet.is_discard and not (stills and not bytes(packet)[0] & 0x10):  # VP8's hidden frames
                        if self.inside(self.time(packet)):
                            self.pts.append(packet.pts)
                        if packet.is_keyframe:
                            self.key_pts.append(packet.pts)
                elif packet.stream is audio:
                    for frame in self.decode(packet, "audio"):
                        self._count(frame)
                        if not packet.size:
                            last = max(last, self.time(frame) if frame.pts is not None else 0.0)
        if promised - last > max(0.5, 0.02 * promised):
            raise Refused(
                f"truncated: it holds {last:.2f} s of the {promised:.2f} s that its header states; copy it again"
            )
        self.last = last
        self.pts = array("q", sorted(self.pts))
        self.key_pts = array("q", sorted(self.key_pts))

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
        if frame.pts is None or (self.start == 0 and self.end == float("inf")):
            return 0, frame.samples
        begin = self.time(frame)
        low, high = (
            frame.samples if t == float("inf") else min(max(-int(-(t - begin) * self.rate // 1), 0), frame.samples)
            for t in (self.start, self.end)
        )
        return low, high

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
        position = 0
        with self.open() as (container, _, audio):
            for packet in self.packets(container, audio):
                for frame in self.decode(packet, "audio"):
                    first, last = self._part(frame)
                    if first == last:
                        continue
                    wave = _mono(frame)[first:last]
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
        found = self._by_seeking() if self.timed else None
        return found or self._in_order()

    def _by_seeking(self) -> tuple[np.ndarray, list[float]] | None:
        """Decodes only from a key frame to a wanted frame. None if a wanted frame is not where it should be."""
        wanted = [self.pts[i] for i in frame_indices(len(self.pts))]
        images: dict[int, np.ndarray] = {}
        with self.open() as (container, video, _):
            decoded: Iterator[Any] | None = None
            reached: int | None = None  # nothing shown before this is still to come
            for pts in sorted(set(wanted)):
                at = bisect_right(self.key_pts, pts) - 1
                key = self.key_pts[at] if at >= 0 else None
                if decoded is None or (key is not None and reached is not None and key > reached):
                    if reached is not None or key != self.pts[0]:
                        container.seek(pts if key is None else key, stream=video)
                    decoded = self._frames(container, video)
                for frame in decoded:
                    if frame.pts is None:
                        return None
                    reached = frame.pts
                    if frame.pts >= pts:
                        break
                else:
                    return None
                if frame.pts != pts:
                    return None
                images[pts] = self._image(frame)
            scale = video.time_base
        times = [float(pts * scale) - self.origin for pts in wanted]
        return np.stack([images[pts] for pts in wanted]), times

    def _in_order(self) -> tuple[np.ndarray, list[float]] | None:
        """Two passes over every frame: count, then pick. For files without times and for what seeking cannot reach."""
        self.damaged["video"] = 0
        with self.open() as (container, video, _):
            count = sum(1 for frame in self._frames(container, video) if self._shown(frame))
        if not count:
            return None
        wanted = frame_indices(count)
        picked: dict[int, tuple[np.ndarray, float]] = {}
        with self.open() as (container, video, _):
            pace = float(1 / video.guessed_rate) if video.guessed_rate else 0.0
            shown = (frame for frame in self._frames(container, video) if self._shown(frame))
            for i, frame in enumerate(shown):
                if i in wanted:
                    picked[i] = self._image(frame), self.time(frame) if frame.pts is not None else i * pace
        return np.stack([picked[i][0] for i in wanted]), [picked[i][1] for i in wanted]

    def _shown(self, frame: Any) -> bool:
        return frame.pts is None or self.inside(self.time(frame))

    def _frames(self, container: Any, video: Any) -> Iterator[Any]:
        for packet in self.packets(container, video):
            yield from self.decode(packet, "video")

    def _image(self, frame: Any) -> np.ndarray:
        """uint8 [3,224,224], squashed and turned upright."""
        self.check_size(frame.width, frame.height)
        small = frame.reformat(FRAME_SIZE, FRAME_SIZE, "rgb24", interpolation=Interpolation.BILINEAR)
        return np.ascontiguousarray(_upright(small.to_ndarray(), frame).transpose(2, 0, 1))


def _upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """Applies the display matrix: multiples of 90 degrees and mirror images. image [H,W,3], H = W."""
    matrix = next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return image
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 9223372036854775808.0, "flt": 1.0, "dbl": 1.0}


def _mono(frame: Any) -> np.ndarray:
    """float32 [samples], the mean of all channels, full scale 1."""
    kind = frame.format.name.removesuffix("p")
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(frame.samples, -1).T
    if kind == "u8":
        samples = samples.astype(np.float32) - 128
    return (samples / _FULL_SCALE[kind]).astype(np.float32).mean(0)


def read_subtitle(path: str, start: float | None, end: float | None, limits: dict) -> str:
    """The words of an .srt or .vtt file between start and end, cues joined by blanks, mark-up removed."""
    import re

    what = "srt" if path.lower().endswith(".srt") else "webvtt"
    if os.path.getsize(path) > 16 << 20:
        raise Refused("more than 16 MiB of subtitles")
    cues, found = [], False
    with _open(path, limits, format=what) as container:
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
                cues.append(" ".join(re.sub(r"<[^>]*>|\{\\[^}]*\}", "", text).split()))
    if not found:
        raise Refused(f"no subtitle in it; it is not a {path[-4:].lower()} file")
    return " ".join(filter(None, cues))


def answer(request: dict) -> tuple[dict, list[np.ndarray]]:
    limits = request["limits"]
    start, end = request["start"], request["end"]
    words = ""
    if request["subtitle"]:
        try:
            words = read_subtitle(request["subtitle"], start, end, limits)
        except Refused as refused:
            return {"error": str(refused), "file": request["subtitle"]}, []
    reader = Reader(request["path"], start, end, limits)
    reader.survey()
    pictures, sound = reader.pictures(), reader.sound()
    if pictures is None and sound is None:
        part = (
            f"between {reader.start:g} s and {reader.end:g} s of its {reader.last:.2f} s" if start or end else "in it"
        )
        raise Refused(f"no frame and no sound can be decoded {part}")
    if reader.has_video and pictures is None:
        reader.damaged["video"] = max(reader.damaged["video"], 1) if reader.timed and reader.pts else 0
    notes = [f"{n} {kind} packets could not be decoded" for kind, n in reader.damaged.items() if n]
    header = {
        "frames": pictures is not None,
        "audio": sound is not None,
        "subtitle": words,
        "duration": max(min(reader.end, reader.last) - reader.start, 0.0),
        "frame_times": pictures[1] if pictures else [],
        "window_starts": sound[1] if sound else [],
        "notes": notes,
    }
    return header, [array for array, _ in (pair for pair in (pictures, sound) if pair)]


def _die_with_parent() -> None:
    """The parent keeps our stdin open; when it ends, so do we, whatever the decoder is doing."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    request = json.loads(os.fdopen(os.dup(0), "rb", buffering=0).readline())
    limits = request["limits"]
    threading.Thread(target=_die_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"],) * 2)
    cpu = int(limits["seconds"] * (os.cpu_count() or 1)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(None)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but the answer reaches the parent
    arrays: list[np.ndarray] = []
    try:
        header, arrays = answer(request)
    except Refused as refused:
        header = {"error": str(refused)}
    except (MemoryError, av.error.MemoryError):
        header = {"error": f"needs more than the allowed {limits['memory'] >> 20} MiB of memory to decode"}
    except (av.error.FFmpegError, OSError) as error:
        header = {"error": f"damaged: {error.strerror or error}"}
    text = json.dumps(header).encode()
    out.write(struct.pack("<Q", len(text)) + text)
    for block in arrays:
        out.write(block.tobytes())
    out.flush()
    os._exit(0)  # the reading thread would hold up an ordinary exit


if __name__ == "__main__":
    main()
