"""Voices: harmonics, creak and breath through vowel formants, driven by the prosody of an emotion."""

from dataclasses import dataclass

import numpy as np

RATE = 16000  # Hz
HOP = 160  # samples between two values of a contour
_HARMONICS = 36
_VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (300, 2290, 3010), (570, 840, 2410), (330, 870, 2240))


@dataclass(frozen=True)
class Prosody:
    """How an emotion sounds.

    Attributes:
        pitch: semitones above the pitch of the speaker.
        span: range of the melody, in semitones.
        rate: syllables per second.
        energy: loudness, about 0..1.
        tilt: exponent by which harmonics decay: high is dark.
        breath: share of noise.
        rough: depth of creak, 0..1.
        tremble: vibrato of 6 Hz, in semitones.
        pause: probability of a pause after a syllable.
        melody: name of the contour, see `_tune`.
    """

    pitch: float
    span: float
    rate: float
    energy: float
    tilt: float
    breath: float
    rough: float
    tremble: float
    pause: float
    melody: str


PROSODY = {
    "angry": Prosody(2.5, 3.5, 5.2, 1.0, 0.7, 0.05, 0.45, 0.0, 0.04, "strokes"),
    "disgusted": Prosody(-2.0, 3.0, 3.2, 0.6, 1.2, 0.10, 0.70, 0.0, 0.15, "glides"),
    "fearful": Prosody(5.0, 1.5, 5.4, 0.5, 1.4, 0.30, 0.05, 0.9, 0.15, "level"),
    "happy": Prosody(3.5, 5.0, 4.8, 0.8, 0.9, 0.08, 0.0, 0.0, 0.05, "arches"),
    "neutral": Prosody(0.0, 2.0, 4.2, 0.55, 1.2, 0.08, 0.05, 0.0, 0.08, "fall"),
    "sad": Prosody(-1.5, 1.2, 3.0, 0.3, 1.8, 0.25, 0.05, 0.1, 0.25, "fall"),
    "surprised": Prosody(3.5, 7.0, 3.9, 0.75, 1.0, 0.12, 0.0, 0.0, 0.10, "leap"),
}


@dataclass(frozen=True)
class Throat:
    """The voice of one person: pitch in Hz, a factor of the formants, and additions to tilt and breath."""

    pitch: float
    formants: float
    tilt: float
    breath: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Throat":
        """A random voice. The order of the draws is part of the corpus."""
        high = rng.random()
        return Throat(
            pitch=float(95 * 2.3**high * rng.uniform(0.94, 1.06)),
            formants=0.88 + 0.26 * high + rng.uniform(-0.03, 0.03),
            tilt=rng.uniform(-0.15, 0.15),
            breath=rng.uniform(0.0, 0.06),
        )

    @property
    def timbre(self) -> str:
        """low, mid or high, by pitch."""
        if self.pitch < 125:
            return "low"
        return "mid" if self.pitch < 165 else "high"


def utter(
    emotion: str, throat: Throat, seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Voice an emotion, without words.

    Args:
        emotion: a key of PROSODY.
        throat: the voice of the person.
        seconds: length.
        rng: decides strength, syllables and noise.

    Returns:
        Sound float32 [samples] at 16 kHz, and its loudness [samples / HOP], 0..1.
    """
    prosody, neutral = PROSODY[emotion], PROSODY["neutral"]
    strength = rng.uniform(0.65, 1.1)

    def mixed(name: str, spread: float) -> float:
        """The emotion's value moved from the neutral one by `strength`, with some noise."""
        value, base = getattr(prosody, name), getattr(neutral, name)
        return base + strength * (value - base) + rng.normal(0, spread)

    # The order of these lines is the order of the draws.
    pitch = mixed("pitch", 1.0)
    span = max(mixed("span", 0.6), 0.2)
    rate = max(mixed("rate", 0.35), 2.0)
    tilt = mixed("tilt", 0.12) + throat.tilt
    energy = max(mixed("energy", 0.08), 0.15)
    breath = max(mixed("breath", 0.03), 0) + throat.breath
    rough = float(np.clip(mixed("rough", 0.05), 0, 0.9))
    tremble = max(mixed("tremble", 0.08), 0)
    pause = float(np.clip(mixed("pause", 0.03), 0, 0.5))

    count = int(seconds * RATE) // HOP
    loudness, semitones, formants = _syllables(count, prosody.melody, span, rate, pause, rng)
    t = np.arange(count) * HOP / RATE
    semitones = semitones + pitch + tremble * np.sin(2 * np.pi * (6 + rng.uniform(-0.7, 0.7)) * t)
    semitones += 0.15 * rng.standard_normal(count)
    loudness *= 1 - 0.25 * t / seconds
    f0 = throat.pitch * 2 ** (semitones / 12)
    wave = _harmonics(f0, loudness, formants * throat.formants, tilt, rough)
    hiss = rng.standard_normal(len(wave)).astype(np.float32)
    hiss[1:] -= 0.6 * hiss[:-1]
    noisy = wave + 0.25 * breath * np.repeat(loudness, HOP) * hiss
    wave = energy * noisy * rng.uniform(0.85, 1.15)
    room = rng.uniform(0.002, 0.008) * rng.standard_normal(len(wave))
    return np.clip(0.35 * wave + room, -1, 1).astype(np.float32), loudness


def _syllables(
    count: int, melody: str, span: float, rate: float, pause: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random syllables: loudness [count] in 0..1, semitones [count] and formants in Hz [count, 3]."""
    loudness, tune = np.zeros(count), np.zeros(count)
    formants = np.zeros((count, 3))
    place = int(rng.uniform(0.02, 0.12) * RATE / HOP)
    vowel = np.array(_VOWELS[rng.integers(5)], float)
    while place < count:
        length = max(int(rng.normal(1, 0.15) / rate * RATE / HOP), 6)
        target = np.array(_VOWELS[rng.integers(5)], float)
        part = np.arange(min(length, count - place))
        s = part / length
        here = slice(place, place + len(part))
        loudness[here] = np.sin(np.pi * np.clip(s / 0.85, 0, 1)) ** 0.6 * rng.uniform(0.7, 1.0)
        formants[here] = vowel + (target - vowel) * np.clip(s * 2, 0, 1)[:, None]
        tune[here] = span * (_tune(melody, (place + part) / count, s) + rng.normal(0, 0.12))
        vowel, place = target, place + length
        if rng.random() < pause:
            gap = int(rng.uniform(0.12, 0.35) * RATE / HOP)
            formants[place : place + gap] = vowel
            place += gap
    formants[formants[:, 0] == 0] = vowel
    return loudness, tune, formants


def _tune(melody: str, u: np.ndarray, s: np.ndarray) -> np.ndarray:
    """A melody at the places u of the utterance and s of the syllable (both 0..1); about -0.5..0.5."""
    if melody == "arches":
        return 0.5 * np.sin(2 * np.pi * 2.5 * u) + 0.2 * np.sin(np.pi * s)
    if melody == "strokes":
        return 0.5 - s + 0.2 * (0.5 - u)
    if melody == "glides":
        return 0.6 * (0.5 - s) + 0.6 * (0.5 - u)
    if melody == "leap":
        return np.clip((u - 0.45) / 0.5, 0, 1) ** 1.5 - 0.3 + 0.1 * np.sin(np.pi * s)
    if melody == "level":
        return 0.2 * u
    return 0.5 - u


def _harmonics(
    f0: np.ndarray, loudness: np.ndarray, formants: np.ndarray, tilt: float, rough: float
) -> np.ndarray:
    """Harmonics of a pitch contour, shaped by tilt and formants.

    Args:
        f0: pitch in Hz [n].
        loudness: 0..1 [n].
        formants: Hz [n, 3].
        tilt, rough: see Prosody.

    Returns:
        float32 [n * HOP].
    """
    following = np.append(f0[1:], f0[-1])
    steps = f0[:, None] + (following - f0)[:, None] * (np.arange(HOP) / HOP)
    phase = 2 * np.pi * np.cumsum(steps.ravel()) / RATE
    order = np.arange(1, _HARMONICS + 1)
    hertz = f0[:, None] * order
    width = np.array([90.0, 130.0, 190.0])
    gain = sum(
        weight / (1 + ((hertz - formants[:, i, None]) / width[i]) ** 2)
        for i, weight in enumerate((1.0, 0.7, 0.45))
    )
    amplitude = (0.08 + gain) * order**-tilt * (hertz < 6500) * loudness[:, None]
    amplitude = amplitude.astype(np.float32)
    slope = np.diff(amplitude, axis=0, append=amplitude[-1:])
    ramp = (np.arange(HOP) / HOP).astype(np.float32)
    rotation = np.exp(1j * phase).astype(np.complex64)
    power, wave = rotation.copy(), np.zeros(len(rotation), np.float32)
    for k in range(_HARMONICS):
        wave += (amplitude[:, k, None] + slope[:, k, None] * ramp).ravel() * power.imag
        power *= rotation
    return wave * (1 + rough * np.sin(phase / 2)).astype(np.float32)
