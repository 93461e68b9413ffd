"""Audible words, spoken by the program eSpeak NG in the register of the speaker, with the emotion's prosody.

This is an option, because the bytes depend on the version of the program.
"""

import io
import shutil
import subprocess
import wave

import numpy as np

from ...errors import DataError, UsageError
from ...media.resample import Resampler
from .voices import PROSODY, RATE, Throat

_PROGRAM = "espeak-ng"
_VOICES = {"low": "en+m3", "mid": "en+m1", "high": "en+f2"}


def check() -> None:
    """Raise UsageError if the program is not installed."""
    if shutil.which(_PROGRAM) is None:
        raise UsageError(
            f"speech: the program {_PROGRAM} is not on the PATH; install eSpeak NG (its packages are called "
            f"{_PROGRAM}), or leave --speech out"
        )


def say(text: str, emotion: str, throat: Throat) -> np.ndarray:
    """Speak a text.

    Pitch, rate and loudness of the emotion, relative to neutral, are applied to the program's defaults.

    Returns:
        float32 [samples] at 16 kHz.

    Raises:
        DataError: the program fails.
    """
    prosody, neutral = PROSODY[emotion], PROSODY["neutral"]
    options = {
        "-v": _VOICES[throat.timbre],
        "-p": round(np.clip(50 + 5 * (prosody.pitch - neutral.pitch), 0, 99)),
        "-s": round(np.clip(175 * prosody.rate / neutral.rate, 80, 450)),
        "-a": round(np.clip(100 * prosody.energy / neutral.energy, 0, 200)),
    }
    command = [_PROGRAM, "--stdout", "--stdin", *(str(part) for pair in options.items() for part in pair)]
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    if done.returncode or not done.stdout:
        message = done.stderr.decode(errors="replace").strip()
        raise DataError(f"{_PROGRAM} failed ({done.returncode}): {message}")
    with wave.open(io.BytesIO(done.stdout)) as file:
        data = file.readframes(len(done.stdout))  # the header of a pipe has no valid length: read everything
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        resampler = Resampler(file.getframerate(), RATE)
    count = resampler.length(len(samples))
    if not count:
        raise DataError(f"{_PROGRAM} said nothing")
    low, high = resampler.needs(0, count)
    return resampler.run(np.pad(samples, (-low, max(high - len(samples), 0))), low, 0, count)


def over(voice: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Mix words into a voice of at least their length, one and a half times as loud as it. Both float32."""
    loudness = np.sqrt(np.mean(voice**2) / max(float(np.mean(words**2)), 1e-12))
    mixed = voice.copy()
    start = (len(voice) - len(words)) // 2
    mixed[start : start + len(words)] += 1.5 * loudness * words
    return np.clip(mixed, -1, 1)
