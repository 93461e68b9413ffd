"""Voices: a source of harmonics, creak and breath through vowel formants, driven by the prosody of an emotion."""

from dataclasses import dataclass

import numpy as np

RATE, HOP = 16000, 160  # Hz, samples between two values of a contour
_HARMONICS = 36
_VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (300, 2290, 3010), (570, 840, 2410), (330, 870, 2240))


@dataclass(frozen=True)
class Prosody:
    """How an emotion sounds. Pitch in semitones from the speaker's own, rate in syllables a second."""

    pitch: float
    span: float  # of the melody
    rate: float
    energy: float
    tilt: float  # of the spectrum: high is dark
    breath: float
    rough: float  # creak
    tremble: float  # semitones at 6 Hz
    pause: float  # chance after a syllable
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
    """One person's voice: own pitch in Hz, length of the throat (scales the formants), darkness, breath."""

    pitch: float
    formants: float
    tilt: float
    breath: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Throat":
        high = rng.random()
        return Throat(
            float(95 * 2.3**high * rng.uniform(0.94, 1.06)), 0.88 + 0.26 * high + rng.uniform(-0.03, 0.03),
            rng.uniform(-0.15, 0.15), rng.uniform(0.0, 0.06),
        )  # fmt: skip

    @property
    def timbre(self) -> str:
        return "low" if self.pitch < 125 else "mid" if self.pitch < 165 else "high"


def utter(
    emotion: str, throat: Throat, seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [samples] at 16 kHz, and how loud it is [samples / 160] in 0..1."""
    base = PROSODY[emotion]
    strength = rng.uniform(0.65, 1.1)
    neutral = PROSODY["neutral"]

    def mixed(name: str, spread: float) -> float:
        here, rest = getattr(base, name), getattr(neutral, name)
        return rest + strength * (here - rest) + rng.normal(0, spread)

    pitch, span = mixed("pitch", 1.0), max(mixed("span", 0.6), 0.2)
    rate, tilt = max(mixed("rate", 0.35), 2.0), mixed("tilt", 0.12) + throat.tilt
    energy, breath = max(mixed("energy", 0.08), 0.15), max(mixed("breath", 0.03), 0) + throat.breath
    rough, tremble = float(np.clip(mixed("rough", 0.05), 0, 0.9)), max(mixed("tremble", 0.08), 0)
    pause = float(np.clip(mixed("pause", 0.03), 0, 0.5))

    count = int(seconds * RATE) // HOP
    loud, semitones, formants = _syllables(count, base.melody, span, rate, pause, rng)
    t = np.arange(count) * HOP / RATE
    semitones = semitones + pitch + tremble * np.sin(2 * np.pi * (6 + rng.uniform(-0.7, 0.7)) * t)
    semitones += 0.15 * rng.standard_normal(count)
    loud *= 1 - 0.25 * t / seconds
    wave = _sing(throat.pitch * 2 ** (semitones / 12), loud, formants * throat.formants, tilt, rough)
    smooth = np.repeat(loud, HOP)
    hiss = rng.standard_normal(len(wave)).astype(np.float32)
    hiss[1:] -= 0.6 * hiss[:-1]
    wave = energy * (wave + 0.25 * breath * smooth * hiss) * rng.uniform(0.85, 1.15)
    room = rng.uniform(0.002, 0.008) * rng.standard_normal(len(wave))
    return np.clip(0.35 * wave + room, -1, 1).astype(np.float32), loud


def _syllables(
    count: int, melody: str, span: float, rate: float, pause: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loudness [count], melody in semitones [count], formants in Hz [count, 3]."""
    loud, tune = np.zeros(count), np.zeros(count)
    formants = np.zeros((count, 3))
    place = int(rng.uniform(0.02, 0.12) * RATE / HOP)
    vowel = np.array(_VOWELS[rng.integers(5)], float)
    while place < count:
        length = max(int(rng.normal(1, 0.15) / rate * RATE / HOP), 6)
        target = np.array(_VOWELS[rng.integers(5)], float)
        part = np.arange(min(length, count - place))
        s = part / length
        here = slice(place, place + len(part))
        loud[here] = np.sin(np.pi * np.clip(s / 0.85, 0, 1)) ** 0.6 * rng.uniform(0.7, 1.0)
        formants[here] = vowel + (target - vowel) * np.clip(s * 2, 0, 1)[:, None]
        tune[here] = span * (_tune(melody, (place + part) / count, s) + rng.normal(0, 0.12))
        vowel, place = target, place + length
        if rng.random() < pause:
            gap = int(rng.uniform(0.12, 0.35) * RATE / HOP)
            formants[place : place + gap] = vowel
            place += gap
    formants[formants[:, 0] == 0] = vowel
    return loud, tune, formants


def _tune(melody: str, u: np.ndarray, s: np.ndarray) -> np.ndarray:
    """A melody over the utterance (u in 0..1) and within the syllable (s in 0..1), about -0.5..0.5."""
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


def _sing(f0: np.ndarray, loud: np.ndarray, formants: np.ndarray, tilt: float, rough: float) -> np.ndarray:
    """float32 [samples]: harmonics of f0 [n], each as loud as tilt and formants [n, 3] make it."""
    after = np.append(f0[1:], f0[-1])
    steps = f0[:, None] + (after - f0)[:, None] * (np.arange(HOP) / HOP)
    phase = 2 * np.pi * np.cumsum(steps.ravel()) / RATE
    order = np.arange(1, _HARMONICS + 1)
    hertz = f0[:, None] * order
    width = np.array([90.0, 130.0, 190.0])
    gain = sum(
        weight / (1 + ((hertz - formants[:, i, None]) / width[i]) ** 2)
        for i, weight in enumerate((1.0, 0.7, 0.45))
    )  # fmt: skip
    amplitude = (0.08 + gain) * order**-tilt * (hertz < 6500) * loud[:, None]
    amplitude = amplitude.astype(np.float32)
    slope = np.diff(amplitude, axis=0, append=amplitude[-1:])
    ramp = (np.arange(HOP) / HOP).astype(np.float32)
    turn = np.exp(1j * phase).astype(np.complex64)
    power, wave = turn.copy(), np.zeros(len(turn), np.float32)
    for k in range(_HARMONICS):
        wave += (amplitude[:, k, None] + slope[:, k, None] * ramp).ravel() * power.imag
        power *= turn
    return wave * (1 + rough * np.sin(phase / 2)).astype(np.float32)
