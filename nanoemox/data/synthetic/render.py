"""One clip as a media file: H.264 and AAC in MP4, or sound alone in WAVE."""

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from . import faces, speech, voices
from .plan import FACES, VOICES, Plan

# One thread, one quantiser and no time stamps of the writer: the same bytes every time.
_H264 = {"preset": "veryfast", "qp": "24", "bf": "0", "g": "16", "flags": "+bitexact"}


def looks_of(seed: int, speaker: int) -> faces.Looks:
    return faces.Looks.draw(np.random.default_rng([seed, FACES, speaker]))


def throat_of(seed: int, speaker: int) -> voices.Throat:
    return voices.Throat.draw(np.random.default_rng([seed, VOICES, speaker]))


def render(plan: Plan, audible: bool = False) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames uint8 [n, size, size, 3], sound float32 [samples], and the frame in which the face is at its apex.

    audible: the voice says the words, by speech.py; the clip is as long as they take.
    """
    rng, wave_, mouth = _speak(plan, audible)
    pixels, apex = faces.film(plan.shown["face"], looks_of(plan.seed[0], plan.speaker), mouth, rng)
    return pixels, wave_, apex


def units(plan: Plan) -> np.ndarray:
    """float32 [frames, units]: what the face of the clip does, in the order of faces.NAMES; nothing is drawn."""
    rng, _, mouth = _speak(plan)
    return np.stack(list(faces.act(plan.shown["face"], len(mouth), rng)[1].values()), 1).astype(np.float32)


def _speak(plan: Plan, audible: bool = False) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """The clip's random numbers after its voice, the voice [samples], and how far it opens the mouth [frames]."""
    rng = np.random.default_rng([*plan.seed, 1])
    sound, loud = _voice(plan, rng, audible)
    frames = len(loud) * voices.HOP * faces.RATE // voices.RATE
    return (
        rng,
        sound,
        np.interp(np.arange(frames) / faces.RATE, np.arange(len(loud)) * voices.HOP / voices.RATE, loud),
    )


def _voice(plan: Plan, rng: np.random.Generator, audible: bool) -> tuple[np.ndarray, np.ndarray]:
    """What `voices.utter` gives, the words over it if they are wanted."""
    emotion, throat, seconds = (
        plan.shown["voice"],
        throat_of(plan.seed[0], plan.speaker),
        float(rng.uniform(2.1, 2.9)),
    )
    if not audible:
        return voices.utter(emotion, throat, seconds, rng)
    words = speech.say(plan.spoken.text, emotion, throat)
    sound, loud = voices.utter(emotion, throat, max(seconds, len(words) / voices.RATE + 0.2), rng)
    return speech.over(sound, words), loud


def write_clip(plan: Plan, path: Path, audible: bool = False) -> int:
    """Writes the clip; returns the frame of the apex."""
    pixels, sound, apex = render(plan, audible)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=faces.RATE, options=_H264)
        video.width = video.height = faces.SIZE
        video.pix_fmt = "yuv420p"
        video.thread_count = 1
        audio = container.add_stream("aac", rate=voices.RATE, layout="mono", options={"flags": "+bitexact"})
        audio.bit_rate = 48000
        for i, picture in enumerate(_yuv(pixels)):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, faces.RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        _encode_sound(container, audio, sound)
    return apex


def _yuv(pixels: np.ndarray) -> np.ndarray:
    """RGB [n, size, size, 3] -> planes [n, size * 3 / 2, size] as FFmpeg lays out yuv420p; BT.601 in whole numbers."""
    r, g, b = (pixels[..., i].astype(np.int32) for i in range(3))
    n, size, _ = r.shape
    luma = ((66 * r + 129 * g + 25 * b + 128) >> 8) + 16
    red, green, blue = (c.reshape(n, size // 2, 2, size // 2, 2).sum((2, 4)) for c in (r, g, b))
    u = ((-38 * red - 74 * green + 112 * blue + 512) >> 10) + 128
    v = ((112 * red - 94 * green - 18 * blue + 512) >> 10) + 128
    return (
        np.concatenate([luma.reshape(n, -1), u.reshape(n, -1), v.reshape(n, -1)], 1)
        .reshape(n, -1, size)
        .astype(np.uint8)
    )


def _encode_sound(container: Any, stream: Any, sound: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = voices.RATE, 0, Fraction(1, voices.RATE)
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_voice(plan: Plan, path: Path, audible: bool = False) -> None:
    """The voice alone, 16 bits."""
    sound, _ = _voice(plan, np.random.default_rng([*plan.seed, 1]), audible)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(voices.RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
