"""Drawn faces on film, driven by facial action units that change over time."""

import numpy as np

from .canvas import RATE as RATE
from .canvas import SIZE as SIZE
from .canvas import Canvas
from .drawing import Looks as Looks
from .drawing import draw_face

# Strength of the action units (FACS numbers) at the apex.
UNITS = {
    "angry": {4: 1.0, 5: 0.5, 7: 0.4, 23: 1.0},
    "disgusted": {4: 0.6, 7: 0.8, 9: 1.0, 10: 1.0, 15: 0.5},
    "fearful": {1: 1.0, 2: 1.0, 5: 1.0, 26: 0.9},
    "happy": {6: 1.0, 12: 1.0, 25: 0.5},
    "neutral": {},
    "sad": {1: 1.0, 4: 0.3, 15: 1.0, 17: 1.0},
    "surprised": {1: 1.0, 2: 1.0, 5: 1.0, 26: 0.9},
}
NAMES = {
    1: "Inner brow raiser",
    2: "Outer brow raiser",
    4: "Brow lowerer",
    5: "Upper lid raiser",
    6: "Cheek raiser",
    7: "Lid tightener",
    9: "Nose wrinkler",
    10: "Upper lip raiser",
    12: "Lip corner puller",
    15: "Lip corner depressor",
    17: "Chin raiser",
    23: "Lip tightener",
    25: "Lips part",
    26: "Jaw drop",
}


def course(emotion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Strength of the expression in every frame [frames], 0..1.

    Surprise rises fast and fades. Fear has the same course reversed, so that the frames of the two, without
    their order, have the same distribution. All other expressions rise once and stay.
    """
    t = (np.arange(frames) + 0.5) / frames
    strength = rng.uniform(0.7, 1.0)
    if emotion in ("surprised", "fearful"):
        if emotion == "fearful":
            t = 1 - t
        begin, fade = rng.uniform(0.0, 0.12), rng.uniform(0.3, 0.45)
        return strength * _ramp(t, begin, 0.1) * (1 - _ramp(t, fade, 0.35))
    return strength * _ramp(t, rng.uniform(-0.1, 0.25), rng.uniform(0.15, 0.4))


def _ramp(t: np.ndarray, begin: float, length: float) -> np.ndarray:
    """A smooth step from 0 to 1 that starts at `begin`."""
    s = np.clip((t - begin) / length, 0, 1)
    return s * s * (3 - 2 * s)


def act(emotion: str, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Strength of the expression [frames], 0..1, and of every action unit of NAMES [frames], 0..1.1."""
    strength = course(emotion, frames, rng)
    units = {unit: np.zeros(frames) for unit in NAMES}
    for unit, apex in UNITS[emotion].items():
        units[unit] = apex * rng.uniform(0.75, 1.1) * strength
    for unit in units:  # a face is never quite still
        units[unit] = np.clip(units[unit] + rng.normal(0, 0.05) + rng.normal(0, 0.015, frames), 0, 1.1)
    return strength, units


def film(emotion: str, looks: Looks, mouth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Film a person with an expression.

    Args:
        emotion: what the face shows.
        looks: the person.
        mouth: how far speech opens the mouth in every frame [frames], 0..1.
        rng: decides the course, the movement of the head, background and light.

    Returns:
        Frames uint8 [frames, SIZE, SIZE, 3], and the number of the frame with the strongest expression.
    """
    frames = len(mouth)
    strength, units = act(emotion, frames, rng)
    canvas = Canvas(frames, rng)
    draw_face(canvas, looks, units, _blinks(frames, rng), mouth)
    return _light(canvas.pixels, rng), int(np.argmax(strength))


def _blinks(frames: int, rng: np.random.Generator) -> np.ndarray:
    """How far the eyes are closed [frames]: one blink, or none."""
    closed = np.zeros(frames)
    closed[rng.integers(frames)] = 0.9 * (rng.random() < 0.6)
    return closed


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coloured light from one side, and the noise of a sensor."""
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.3) * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    tint = (rng.uniform(0.7, 1.15) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    noise = rng.normal(0, rng.uniform(1, 3), (1, SIZE, SIZE, 1)).astype(np.float32)
    light = (field[None, :, :, None] * tint).astype(np.float32)
    return np.clip(pixels * light + noise, 0, 255).astype(np.uint8)
