"""Words that can be heard: the program eSpeak NG says them in the speaker's register, with the emotion's prosody.

An option, since another version of the program makes other bytes.
"""

import io
import shutil
import subprocess
import wave

import numpy as np

from ...errors import UsageError
from ...media.resample import Resampler
from .voices import PROSODY, RATE, Throat

_PROGRAM = "espeak-ng"
_VOICES = {"low": "en+m3", "mid": "en+m1", "high": "en+f2"}


def check() -> None:
    """Raises UsageError where the program is missing."""
    if shutil.which(_PROGRAM) is None:
        raise UsageError(
            f"speech: the program {_PROGRAM} is not on the PATH; install eSpeak NG (its packages are called "
            f"{_PROGRAM}), or leave --speech out"
        )


def say(text: str, emotion: str, throat: Throat) -> np.ndarray:
    """float32 [samples] at 16 kHz. Pitch, rate and loudness are relative to the program's own defaults.

    Raises ValueError where the program fails.
    """
    here, rest = PROSODY[emotion], PROSODY["neutral"]
    options = {
        "-v": _VOICES[throat.timbre],
        "-p": round(np.clip(50 + 5 * (here.pitch - rest.pitch), 0, 99)),
        "-s": round(np.clip(175 * here.rate / rest.rate, 80, 450)),
        "-a": round(np.clip(100 * here.energy / rest.energy, 0, 200)),
    }
    command = [_PROGRAM, "--stdout", "--stdin", *(str(part) for pair in options.items() for part in pair)]
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    if done.returncode or not done.stdout:
        raise ValueError(
            f"{_PROGRAM} failed ({done.returncode}): {done.stderr.decode(errors='replace').strip()}"
        )
    with wave.open(
        io.BytesIO(done.stdout)
    ) as file:  # a pipe's header cannot know the length: read what is there
        samples = np.frombuffer(file.readframes(len(done.stdout)), "<i2").astype(np.float32) / 32768
        resampler = Resampler(file.getframerate(), RATE)
    count = resampler.length(len(samples))
    if not count:
        raise ValueError(f"{_PROGRAM} said nothing")
    low, high = resampler.needs(0, count)
    return resampler.run(np.pad(samples, (-low, max(high - len(samples), 0))), low, 0, count)


def over(voice: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The words over a voice of at least their length: float32, one and a half times as loud as it."""
    loudness = np.sqrt(np.mean(voice**2) / max(float(np.mean(words**2)), 1e-12))
    mixed = voice.copy()
    start = (len(voice) - len(words)) // 2
    mixed[start : start + len(words)] += 1.5 * loudness * words
    return np.clip(mixed, -1, 1)
