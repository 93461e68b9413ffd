"""Writes small media files for tests, and decodes files in plain order for comparison."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation


def picture(i: int, width: int, height: int) -> np.ndarray:
    """Frame i: smooth shades by which frames and directions can be distinguished."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack(
        [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 0 * x + (37 * i) % 256], axis=-1
    )
    return image.astype(np.uint8)


def write_video(
    path: Path,
    frames: int = 20,
    *,
    size=(96, 64),
    codec="mpeg4",
    pts=None,
    rate=10,
    sound=None,
    pix_fmt="yuv420p",
    **opts,
) -> Path:
    """`pts`: times of the frames in 1/1000 s, default regular. `sound`: (rate, layout, seconds)."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in opts.items()})
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        if pts is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        audio = None
        if sound:
            audio = container.add_stream(
                "aac" if path.suffix in (".mp4", ".mkv") else "mp2", rate=sound[0], layout=sound[1]
            )
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            rate_hz, layout, seconds = sound
            count = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
            wave = tone(int(rate_hz * seconds), rate_hz)[None].repeat(count, 0)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = rate_hz
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def write_wav(
    path: Path, samples: np.ndarray, rate: int, *, layout="mono", codec="pcm_s16le", format="s16p"
) -> Path:
    """samples [channels, n] in the sample type of `format` (planar)."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=format, layout=layout)
        frame.sample_rate = rate
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def tone(count: int, rate: int, hertz: float = 220.0) -> np.ndarray:
    t = np.arange(count) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 1.7 * t))).astype(
        np.float32
    )


def sequential(path: Path) -> list[tuple[float, np.ndarray]]:
    """Every frame in the order of showing: (seconds from where the file begins, uint8 [3,224,224])."""
    out = []
    with av.open(str(path)) as container:
        begin = (container.start_time or 0) / av.time_base
        begin = 0 if -0.5 < begin < 0 else begin
        for frame in container.decode(video=0):
            small = frame.reformat(224, 224, "rgb24", interpolation=Interpolation.BILINEAR)
            out.append(
                (
                    math.nan if frame.time is None else frame.time - begin,
                    small.to_ndarray().transpose(2, 0, 1),
                )
            )
    return out
