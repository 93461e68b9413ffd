"""The second pass over the video: the frames that are kept (docs/architecture.md section 13)."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from .container import image
from .positions import frame_indices
from .source import Source, Streams
from .survey import Survey


@dataclass
class Pictures:
    """The kept frames of the part."""

    frames: np.ndarray  # uint8 [8,3,224,224], RGB
    times: list[float]  # seconds from where the file begins
    end: float = 0.0  # when the last frame of a file without times ends


def read_pictures(source: Source, survey: Survey) -> Pictures | None:
    """The kept frames of the part, or None if it has no video."""
    if not survey.has_video or (survey.timed and not survey.pts):
        return None
    if survey.timed and survey.seekable:
        pictures = _by_seeking(source, survey)
        if pictures is not None:
            return pictures
    return _in_order(source, survey)


def _by_seeking(source: Source, survey: Survey) -> Pictures | None:
    """Decodes only from a key frame to each kept frame. None if a frame is not where it should be."""
    kept = [survey.pts[i] for i in frame_indices(len(survey.pts))]
    images: dict[int, np.ndarray] = {}
    with source.open() as streams:
        decoded: Iterator[Any] | None = None
        reached: int | None = None  # stamp of the last decoded frame: earlier ones do not come any more
        for pts in sorted(set(kept)):
            key = bisect_right(survey.keys, pts, key=lambda stamps: stamps[0]) - 1
            if key < 0:
                return None
            if decoded is None or (reached is not None and survey.keys[key][0] > reached):
                decoded = _from_key(source, survey, streams, key)
            frame = next((frame for frame in decoded if frame.pts is None or frame.pts >= pts), None)
            if frame is None or frame.pts != pts:
                return None
            reached = pts
            images[pts] = _image(source, frame)
        assert streams.video is not None
        scale, origin = streams.video.time_base, streams.origin
    times = [float(pts * scale - origin) for pts in kept]
    return Pictures(np.stack([images[pts] for pts in kept]), times)


def _from_key(source: Source, survey: Survey, streams: Streams, key: int) -> Iterator[Any]:
    """Frames from a key frame on; none if it cannot be reached or if decoding cannot begin at it."""
    if key > 0 and not _seek_to_key(source, survey, streams, key):
        return
    at_key = whole = key == 0
    for packet in source.packets(streams, streams.video):
        if not at_key:
            # Seeking may land between key frames, or past the wanted one.
            if not packet.is_keyframe or packet.pts is None:
                continue
            at_key = True
        for frame in source.decode(packet, "video"):
            if not whole and not frame.key_frame:
                return  # a recovery point, after which pictures become whole only gradually
            whole = True
            yield frame


def _seek_to_key(source: Source, survey: Survey, streams: Streams, key: int) -> bool:
    pts, dts = survey.keys[key]
    if _seek(source, streams, pts, pts):
        return True
    # Transport streams seek by decoding time.
    return dts is not None and _seek(source, streams, dts - 1, pts)


def _seek(source: Source, streams: Streams, stamp: int, key_pts: int) -> bool:
    """Seeks to `stamp`; whether the key frame at `key_pts`, or one before it, comes next."""
    try:
        streams.container.seek(stamp, stream=streams.video)
        packets = source.packets(streams, streams.video)
        landed = next((packet for packet in packets if packet.is_keyframe and packet.pts is not None), None)
        streams.container.seek(stamp, stream=streams.video)  # reading the packets has moved on
        return landed is not None and landed.pts <= key_pts
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return False


def _in_order(source: Source, survey: Survey) -> Pictures | None:
    """Two passes over every frame: count, then keep. For files without times, and where seeking fails."""
    count, last_time = 0, 0.0
    for time, _ in _frames(source, survey):
        count, last_time = count + 1, time
    if not count:
        return None
    indices = frame_indices(count)
    kept = {
        i: (_image(source, frame), time)
        for i, (time, frame) in enumerate(_frames(source, survey))
        if i in indices
    }
    end = 0.0 if survey.timed else last_time + survey.pace
    return Pictures(np.stack([kept[i][0] for i in indices]), [kept[i][1] for i in indices], end)


def _frames(source: Source, survey: Survey) -> Iterator[tuple[float, Any]]:
    """Every frame of the part in the order of showing, with its time."""
    source.damaged["video"] = 0
    with source.open() as streams:
        number = 0
        for packet in source.packets(streams, streams.video):
            for frame in source.decode(packet, "video"):
                if survey.timed and frame.pts is not None:
                    time = streams.time(frame)
                else:
                    time = survey.begin + number * survey.pace
                number += 1
                if source.inside(time):
                    yield time, frame


def _image(source: Source, frame: Any) -> np.ndarray:
    source.check_size(frame.width, frame.height)
    return image(frame)
