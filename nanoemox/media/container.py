"""Opens a media file so that it can reach no other file, and turns its frames into arrays for the model."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from ..config import FRAME_SIZE

# Demuxers that open other files or addresses, or devices. Everything else that FFmpeg knows is allowed.
_REFUSED = {
    "hls", "concat", "dash", "webm_dash_manifest", "imf", "sdp", "rtsp", "rtp", "rtp_mpegts", "sap", "image2",
    "lavfi", "alsa", "fbdev", "oss", "video4linux2", "v4l2", "x11grab", "vapoursynth", "avisynth", "tty",
}  # fmt: skip
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"[playlist]", b"<MPD")


class Refused(Exception):
    """Why this file cannot be read."""


class _File:
    """A file without a name: FFmpeg judges it by its content, and patterns in its name have no meaning."""

    def __init__(self, path: str):
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.read, self.seek, self.tell = self.file.read, self.file.seek, self.file.tell


@contextmanager
def open_container(path: str, max_streams: int, format: str | None = None) -> Iterator[Any]:
    """The open file. Raises Refused for a playlist, too many streams, and what is not media."""
    allowed = {name for names in av.formats_available for name in names.split(",")} - _REFUSED
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(sorted(allowed))}
    try:
        container = av.open(_File(path), format=format, options=options, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.MemoryError):
            raise
        if _is_playlist(path):
            raise Refused("a playlist, which names other files; name the media file itself") from error
        raise Refused(
            f"not a media file that FFmpeg can read, or its beginning or end is missing ({error.strerror})"
        ) from error
    try:
        if len(container.streams) > max_streams:
            raise Refused(f"{len(container.streams)} streams, {max_streams} are allowed")
        yield container
    finally:
        container.close()


def _is_playlist(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(_PLAYLISTS) or (head.startswith(b"<?xml") and b"<MPD" in head)


def pick_stream(container: Any, kind: str) -> tuple[Any | None, str]:
    """The stream of a kind ("video", "audio") that FFmpeg ranks first, or None and why it is unusable."""
    stream = container.streams.best(kind)
    if stream is None:
        return None, ""
    if kind == "video" and stream.disposition & av.stream.Disposition.attached_pic:
        return None, ""  # cover art
    try:
        if stream.codec_context is None:
            raise av.error.DecoderNotFoundError(0, "no decoder")
        if kind == "video":
            # FFmpeg's frame-threaded decoders of this family are wrong after a seek.
            stream.thread_type = "SLICE" if stream.codec_context.name in ("theora", "vp3", "vp4") else "AUTO"
        stream.codec_context.open(strict=False)
    except (av.error.FFmpegError, ValueError):
        return None, f"the {kind} stream is in a codec that cannot be decoded here, so it counts as absent"
    return stream, ""


def cut_off_wave(path: str) -> bool:
    """Whether a WAVE file states more data than it holds; FFmpeg reads such a file without an error."""
    with open(path, "rb") as file:
        head = file.read(28)
        size = file.seek(0, 2)
    if len(head) < 28 or head[8:12] != b"WAVE":
        return False
    if head[:4] == b"RIFF":
        # Some writers count the 8 bytes of the header too; a program that writes to a pipe states all ones.
        stated = struct.unpack("<I", head[4:8])[0]
        return size < stated < 0x7FFFF000
    if head[:4] in (b"RF64", b"BW64") and head[12:16] == b"ds64":
        stated = struct.unpack("<Q", head[20:28])[0]
        return size < stated
    return False


def image(frame: Any) -> np.ndarray:
    """uint8 [3,224,224], RGB, squashed by swscale's bilinear filter and turned upright."""
    if frame.interlaced_frame:  # reformat would scale each field by itself
        small = _filtered(frame, ("scale", f"{FRAME_SIZE}:{FRAME_SIZE}:flags=bilinear"), ("format", "rgb24"))
    else:
        small = frame.reformat(FRAME_SIZE, FRAME_SIZE, "rgb24", interpolation=Interpolation.BILINEAR)
    return np.ascontiguousarray(_upright(small.to_ndarray(), frame).transpose(2, 0, 1))


def _filtered(frame: Any, *filters: tuple[str, str]) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    graph.link_nodes(source, *(graph.add(*named) for named in filters), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def _display_matrix(frame: Any) -> bytes | None:
    for _ in range(8):
        try:
            return next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), None)
        except ValueError as error:
            # "31 is not a valid Type": FFmpeg attaches types that PyAV does not know, EXIF for one.
            unknown_type = str(error).split()[0]
            frame = _filtered(frame, ("sidedata", f"mode=delete:type={unknown_type}"))
    return None


def _upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Applies the display matrix: multiples of 90 degrees and mirror images. pixels [H,W,3], H = W."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


_FULL_SCALE = {
    "u8": 128.0,
    "s16": 32768.0,
    "s32": 2147483648.0,
    "s64": 9223372036854775808.0,
    "flt": 1.0,
    "dbl": 1.0,
}


def mono(frame: Any) -> np.ndarray:
    """float32 [samples], the mean of all channels, full scale 1."""
    kind = frame.format.name.removesuffix("p")
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(frame.samples, -1).T
    if kind == "u8":
        samples = samples.astype(np.float32) - 128
    return (samples / _FULL_SCALE[kind]).astype(np.float32).mean(0)
