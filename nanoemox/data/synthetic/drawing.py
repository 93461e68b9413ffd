"""One person's face, drawn from action units."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, column

Units = Mapping[int, np.ndarray]  # FACS number of an action unit -> its strength [frames]
_HAIR = ((30, 24, 20), (90, 56, 30), (200, 160, 90), (150, 60, 30), (150, 150, 150))
_IRIS = ((60, 40, 25), (70, 110, 160), (70, 120, 70), (90, 80, 70))


@dataclass(frozen=True)
class Looks:
    """The face of one person. Lengths are in the coordinates of `Canvas`, colours are RGB in 0..255.

    Attributes:
        width, height: half axes of the head.
        eyes: distance of an eye from the middle.
        eye: half width of an eye.
        brow: thickness of a brow.
        mouth: half width of the mouth.
        style: of the hair: 0 short, 1 long, 2 bald.
    """

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    width: float
    height: float
    eyes: float
    eye: float
    brow: float
    mouth: float
    style: int
    glasses: bool
    moustache: bool

    @staticmethod
    def draw(rng: np.random.Generator) -> "Looks":
        """A random person. The order of the draws is part of the corpus."""
        tone = rng.uniform(0.25, 1.0)
        skin = np.array([236, 196, 170]) * tone + np.array([60, 30, 15]) * (1 - tone)
        hair = np.array(_HAIR[rng.integers(5)])
        iris = np.array(_IRIS[rng.integers(4)])
        style = int(rng.integers(3))
        return Looks(
            skin=skin,
            hair=hair * rng.uniform(0.8, 1.2),
            iris=iris,
            lips=skin * 0.55 + np.array([90, 10, 25]),
            width=rng.uniform(0.62, 0.74),
            height=rng.uniform(0.86, 0.98),
            eyes=rng.uniform(0.26, 0.33),
            eye=rng.uniform(0.14, 0.17),
            brow=rng.uniform(0.02, 0.035),
            mouth=rng.uniform(0.25, 0.31),
            style=style,
            glasses=bool(rng.random() < 0.2),
            moustache=bool(style != 1 and rng.random() < 0.2),
        )


def draw_face(canvas: Canvas, looks: Looks, units: Units, blink: np.ndarray, speech: np.ndarray) -> None:
    """Draw a face into every frame.

    Args:
        canvas: the frames.
        looks: the person.
        units: FACS number of an action unit -> its strength [frames].
        blink: how far the eyes are closed [frames], 0..1.
        speech: how far speech opens the mouth [frames], 0..1.
    """
    _head(canvas, looks, units)
    for side in (-1, 1):
        _eye(canvas, looks, units, side, blink)
    _nose(canvas, looks, units)
    _mouth(canvas, looks, units, speech)


def _head(c: Canvas, k: Looks, u: Units) -> None:
    if k.style == 1:
        c.paint(c.ellipse(0, 0.05, k.width * 1.25, k.height * 1.2), k.hair)
    else:
        colour = k.hair if k.style == 0 else k.skin * 0.95
        c.paint(c.ellipse(0, -0.16, k.width * 1.1, k.height * 0.95), colour)
    for side in (-1, 1):
        c.paint(c.ellipse(side * k.width, 0.02, 0.1, 0.17), k.skin * 0.88)
    c.paint(c.ellipse(0, 0.02, k.width, k.height), k.skin)
    if k.style != 2:
        c.paint(c.ellipse(0, -k.height * 0.9, k.width * 0.8, 0.28), k.hair)
    for side in (-1, 1):  # cheeks that rise in a smile
        cheek = c.ellipse(side * 0.4 + c.turn, 0.2 - 0.06 * u[6], 0.13, 0.09)
        c.paint(cheek, k.skin * 0.9 + 20 * np.array([1, 0, 0]), 0.4)


def _eye(c: Canvas, k: Looks, u: Units, side: int, blink: np.ndarray) -> None:
    cx, cy = side * k.eyes + c.turn, -0.14
    opening = np.clip(0.55 + 0.45 * u[5] - 0.3 * u[7] - 0.15 * u[6] - 0.25 * u[15], 0.08, 1.2)
    up = k.eye * opening * (1 - blink)
    low = k.eye * np.clip(0.4 - 0.2 * u[7] - 0.3 * u[6], 0.04, 1) * (1 - 0.5 * blink)
    almond = c.between(cx, k.eye, (cy - up, 0, up), (cy + low, 0, -low))
    c.paint(almond, (245, 245, 240))
    gaze = c.turn * 0.4
    c.paint(almond * c.ellipse(cx + gaze, cy - 0.01, k.eye * 0.52, k.eye * 0.52), k.iris)
    c.paint(almond * c.ellipse(cx + gaze, cy - 0.01, k.eye * 0.24, k.eye * 0.24), (10, 10, 10))
    c.paint(c.stroke(cx, k.eye * 1.08, (cy - up, 0, up), 0.012), (40, 25, 20))
    c.paint(c.stroke(cx, k.eye * 0.9, (cy + low + 0.07 - 0.02 * u[6], 0, -0.03), 0.008), k.skin * 0.7, 0.35)
    inner = -0.37 - 0.17 * u[1] + 0.17 * u[4]
    outer = -0.36 - 0.13 * u[2] + 0.02 * u[4] + 0.05 * u[1] * (1 - u[2])
    middle, slope = (inner + outer) / 2 - 0.03 - 0.02 * u[2], side * (outer - inner) / 2
    c.paint(c.stroke(cx - side * 0.04 * u[4], k.eye * 1.15, (middle, slope, 0.035), k.brow), k.hair * 0.7)
    if k.glasses:
        ring = c.ellipse(cx, cy, k.eye * 1.5, k.eye * 1.35) - c.ellipse(cx, cy, k.eye * 1.38, k.eye * 1.22)
        c.paint(ring, (35, 35, 40))


def _nose(c: Canvas, k: Looks, u: Units) -> None:
    tip = 0.2 - 0.05 * u[9]
    c.paint(c.between(c.turn * 1.6, 0.09, (tip - 0.05, 0, -0.03), (tip + 0.02, 0, -0.02)), k.skin * 0.8)
    for side in (-1, 1):
        c.paint(c.ellipse(side * 0.05 + c.turn * 1.6, tip + 0.005, 0.02, 0.015), k.skin * 0.45)
        fold = c.stroke(side * (0.2 + 0.1 * u[12]) + c.turn, 0.07, (0.3, side * 0.12, 0), 0.01)
        depth = float(np.max(np.clip(u[10] + 0.7 * u[12], 0, 1)))
        c.paint(fold, k.skin * 0.6, depth * 0.6)
    for line in range(3):
        wrinkle = c.stroke(c.turn, 0.11, (-0.14 + 0.075 * line, 0, -0.04), 0.016)
        c.paint(wrinkle * column(np.clip(u[9], 0, 1)), k.skin * 0.5)
    left = c.stroke(c.turn - 0.03, 0.016, (-0.3, 0, 0), 0.08)
    right = c.stroke(c.turn + 0.03, 0.016, (-0.3, 0, 0), 0.08)
    c.paint(np.clip(left + right, 0, 1) * column(np.clip(u[4], 0, 1)), k.skin * 0.6)


def _mouth(c: Canvas, k: Looks, u: Units, speech: np.ndarray) -> None:
    half = k.mouth * (1 + 0.35 * u[12] - 0.25 * u[23] - 0.2 * u[26] - 0.15 * u[10])
    height = 0.48 - 0.03 * u[17] + 0.02 * u[26]
    corner = -0.19 * u[12] + 0.16 * u[15] + 0.02 * u[10]
    thick = 0.05 * (1 - 0.65 * u[23])
    gap = 0.004 + 0.05 * u[25] + 0.17 * u[26] + 0.07 * speech * (1 - 0.5 * u[23])
    up, low = height - 0.35 * gap - 0.09 * u[10], height + 0.65 * gap
    bend_up, bend_low = corner + (height - up), corner - (low - height)
    upper_lip = (up - thick, 0, bend_up + thick)
    lower_lip = (low + thick * 1.2, 0, bend_low - thick)
    c.paint(c.between(c.turn, half * 1.06, upper_lip, lower_lip), k.lips)
    hole = c.between(c.turn, half * 0.97, (up, 0, bend_up), (low, 0, bend_low))
    c.paint(hole, (55, 15, 20))
    teeth = c.between(c.turn, half * 0.8, (up, 0, bend_up), (up + 0.45 * np.minimum(gap, 0.1), 0, bend_up))
    c.paint(teeth * hole, (240, 238, 230))
    c.paint(c.stroke(c.turn, 0.1, (height + 0.17 - 0.03 * u[17], 0, 0.05), 0.01), k.skin * 0.7, 0.3)
    for line in (0.0, 0.04):  # a raised chin is dimpled
        dimples = c.stroke(c.turn, 0.07, (height + 0.2 + line, 0, 0.02), 0.009)
        c.paint(dimples * column(np.clip(u[17], 0, 1)), k.skin * 0.6)
    if k.moustache:
        c.paint(c.between(c.turn, 0.2, (up - 0.1, 0, 0.08), (up - 0.05, 0, 0.05)), k.hair * 0.8)
