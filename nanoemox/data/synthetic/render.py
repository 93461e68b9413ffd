"""One clip as a media file: pictures and sound in MP4, or sound alone in WAVE."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from . import faces, speech, voices
from .plan import FACES, VOICES, Plan

# One thread, a fixed quantiser and no time stamps: the same bytes every time.
_H264 = {"preset": "veryfast", "qp": "24", "bf": "0", "g": "16", "flags": "+bitexact"}


def looks_of(seed: int, speaker: int) -> faces.Looks:
    """The face of a person."""
    return faces.Looks.draw(np.random.default_rng([seed, FACES, speaker]))


def throat_of(seed: int, speaker: int) -> voices.Throat:
    """The voice of a person."""
    return voices.Throat.draw(np.random.default_rng([seed, VOICES, speaker]))


def render(plan: Plan, audible: bool = False) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw and voice a clip.

    Args:
        plan: the clip.
        audible: a speech synthesiser says the words (speech.py), and the clip lasts as long as they do.

    Returns:
        Frames uint8 [n, SIZE, SIZE, 3], sound float32 [samples] at 16 kHz, and the frame in which the
        expression of the face is strongest.
    """
    rng, sound, mouth = _speak(plan, audible)
    pixels, apex = faces.film(plan.shown["face"], looks_of(plan.seed[0], plan.speaker), mouth, rng)
    return pixels, sound, apex


def units(plan: Plan) -> np.ndarray:
    """Strengths of the action units, float32 [frames, units], in the order of faces.NAMES; draws nothing."""
    rng, _, mouth = _speak(plan)
    _, strengths = faces.act(plan.shown["face"], len(mouth), rng)
    return np.stack(list(strengths.values()), 1).astype(np.float32)


def _speak(plan: Plan, audible: bool = False) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """The random numbers after the voice, the sound [samples] and the opening of the mouth [frames]."""
    rng = np.random.default_rng([*plan.seed, 1])
    sound, loudness = _voice(plan, rng, audible)
    frames = len(loudness) * voices.HOP * faces.RATE // voices.RATE
    frame_times = np.arange(frames) / faces.RATE
    loudness_times = np.arange(len(loudness)) * voices.HOP / voices.RATE
    return rng, sound, np.interp(frame_times, loudness_times, loudness)


def _voice(plan: Plan, rng: np.random.Generator, audible: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sound and loudness as `voices.utter` returns them; the words over the sound if audible."""
    emotion = plan.shown["voice"]
    throat = throat_of(plan.seed[0], plan.speaker)
    seconds = float(rng.uniform(2.1, 2.9))
    if not audible:
        return voices.utter(emotion, throat, seconds, rng)
    words = speech.say(plan.spoken.text, emotion, throat)
    seconds = max(seconds, len(words) / voices.RATE + 0.2)
    sound, loudness = voices.utter(emotion, throat, seconds, rng)
    return speech.over(sound, words), loudness


def write_clip(plan: Plan, path: Path, audible: bool = False) -> int:
    """Write a clip as H.264 and AAC in MP4. Returns the frame in which the expression is strongest."""
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
    """RGB [n, size, size, 3] -> planes uint8 [n, size * 3 / 2, size] of yuv420p; BT.601 in integers."""
    r, g, b = (pixels[..., i].astype(np.int32) for i in range(3))
    n, size, _ = r.shape
    luma = ((66 * r + 129 * g + 25 * b + 128) >> 8) + 16
    red, green, blue = (c.reshape(n, size // 2, 2, size // 2, 2).sum((2, 4)) for c in (r, g, b))
    u = ((-38 * red - 74 * green + 112 * blue + 512) >> 10) + 128
    v = ((112 * red - 94 * green - 18 * blue + 512) >> 10) + 128
    planes = np.concatenate([plane.reshape(n, -1) for plane in (luma, u, v)], 1)
    return planes.reshape(n, -1, size).astype(np.uint8)


def _encode_sound(container: av.container.OutputContainer, stream: av.AudioStream, sound: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = voices.RATE, 0, Fraction(1, voices.RATE)
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_voice(plan: Plan, path: Path, audible: bool = False) -> None:
    """Write the voice of a clip as a WAVE file of 16 bits."""
    sound, _ = _voice(plan, np.random.default_rng([*plan.seed, 1]), audible)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(voices.RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
