"""Drawn faces: a rasteriser of ellipses and curves in NumPy, driven by facial action units.

Coordinates: the face's centre is (0, 0), x to the right, y down, the head about 0.7 wide and 0.95 high each way.
All shapes are drawn for every frame at once, as coverages [frames, size, size].
"""

from dataclasses import dataclass

import numpy as np

SIZE, RATE = 112, 8  # pixels each way, frames a second
Row = np.ndarray | float  # a number a frame [frames], or the same for all

# Strength of the action units at the apex (FACS numbers).
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
    1: "Inner brow raiser", 2: "Outer brow raiser", 4: "Brow lowerer", 5: "Upper lid raiser", 6: "Cheek raiser",
    7: "Lid tightener", 9: "Nose wrinkler", 10: "Upper lip raiser", 12: "Lip corner puller",
    15: "Lip corner depressor", 17: "Chin raiser", 23: "Lip tightener", 25: "Lips part", 26: "Jaw drop",
}  # fmt: skip


@dataclass(frozen=True)
class Looks:
    """One person's face."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    width: float
    height: float
    eyes: float  # distance of an eye from the middle
    eye: float  # size of an eye
    brow: float  # thickness
    mouth: float  # half width
    style: int  # of the hair: short, long, bald
    glasses: bool
    moustache: bool

    @staticmethod
    def draw(rng: np.random.Generator) -> "Looks":
        tone = rng.uniform(0.25, 1.0)
        skin = np.array([236, 196, 170]) * tone + np.array([60, 30, 15]) * (1 - tone)
        hair = np.array(
            [(30, 24, 20), (90, 56, 30), (200, 160, 90), (150, 60, 30), (150, 150, 150)][rng.integers(5)]
        )
        iris = np.array([(60, 40, 25), (70, 110, 160), (70, 120, 70), (90, 80, 70)][rng.integers(4)])
        style = int(rng.integers(3))
        return Looks(
            skin, hair * rng.uniform(0.8, 1.2), iris, skin * 0.55 + np.array([90, 10, 25]),
            rng.uniform(0.62, 0.74), rng.uniform(0.86, 0.98), rng.uniform(0.26, 0.33), rng.uniform(0.14, 0.17),
            rng.uniform(0.02, 0.035), rng.uniform(0.25, 0.31), style, bool(rng.random() < 0.2),
            bool(style != 1 and rng.random() < 0.2),
        )  # fmt: skip


def course(emotion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """How strong the expression is in every frame [frames], 0..1.

    Surprise leaps up and fades; fear is the same run backwards, so that the frames of the two, taken without their
    order, cannot be told apart. Everything else rises once and stays.
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
    s = np.clip((t - begin) / length, 0, 1)
    return s * s * (3 - 2 * s)


class _Canvas:
    """Frames [T, size, size, 3] under the coordinates of a face that moves."""

    def __init__(self, frames: int, rng: np.random.Generator):
        t = np.arange(frames) / RATE
        sway = [
            rng.uniform(0.3, 1.0) * np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * t + rng.random()))
            for _ in range(3)
        ]
        scale = rng.uniform(0.95, 1.1)
        grid = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 * scale / SIZE) - scale
        roll = (rng.uniform(-0.12, 0.12) + 0.04 * sway[0]).astype(np.float32)[:, None, None]
        x = (
            grid[None, None, :]
            - (rng.uniform(-0.12, 0.12) + 0.03 * sway[1]).astype(np.float32)[:, None, None]
        )
        y = grid[None, :, None] - (rng.uniform(-0.1, 0.1) + 0.03 * sway[2]).astype(np.float32)[:, None, None]
        self.x, self.y = x * np.cos(roll) + y * np.sin(roll), y * np.cos(roll) - x * np.sin(roll)
        self.soft = SIZE / (2 * scale)  # pixels a unit
        self.turn = (rng.uniform(-0.06, 0.06) + 0.02 * sway[1]).astype(
            np.float32
        )  # of the head, moves the features
        self.pixels = self._background(frames, rng)

    def _background(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        v = np.linspace(0, 1, SIZE, dtype=np.float32)
        top, bottom, spot = rng.uniform(30, 225, (3, 3)).astype(np.float32)
        still = top + (bottom - top) * v[:, None, None] * np.ones((1, SIZE, 1), np.float32)
        for _ in range(rng.integers(0, 4)):  # things on the wall
            a, b = rng.integers(0, SIZE, 2)
            still[a : a + rng.integers(10, 60), b : b + rng.integers(10, 60)] = spot * rng.uniform(0.5, 1.1)
        return np.repeat(still[None], frames, 0)

    def paint(
        self, cover: np.ndarray, colour: np.ndarray | tuple[int, int, int], opacity: float = 1.0
    ) -> None:
        rows = np.flatnonzero(cover.any((0, 2)))
        if not len(rows):
            return
        columns = np.flatnonzero(cover.any((0, 1)))
        area = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        mask = cover[area][..., None] * np.float32(opacity)
        self.pixels[area] += mask * (np.asarray(colour, np.float32) - self.pixels[area])

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Coverage where a distance (in face units) is positive."""
        return np.clip(distance * self.soft + 0.5, 0, 1)

    def ellipse(self, cx: Row, cy: Row, rx: Row, ry: Row) -> np.ndarray:
        cx, cy, rx, ry = map(_column, (cx, cy, rx, ry))
        return self.inside((1 - np.hypot((self.x - cx) / rx, (self.y - cy) / ry)) * np.minimum(rx, ry))

    def between(
        self, cx: Row, half: Row, upper: tuple[Row, Row, Row], lower: tuple[Row, Row, Row]
    ) -> np.ndarray:
        """The area between two parabolas over cx - half..cx + half; each is (height at the middle, slope, bend)."""
        s = (self.x - _column(cx)) / _column(half)
        (a, b, c), (d, e, f) = (tuple(map(_column, curve)) for curve in (upper, lower))
        ends = self.inside((1 - np.abs(s)) * _column(half))
        return ends * self.inside(self.y - (a + s * (b + c * s))) * self.inside(d + s * (e + f * s) - self.y)

    def stroke(self, cx: Row, half: Row, curve: tuple[Row, Row, Row], width: float) -> np.ndarray:
        a, b, c = curve
        return self.between(cx, half, (a - width, b, c), (a + width, b, c))


def _column(value: Row) -> np.ndarray:
    return np.asarray(value, np.float32).reshape(-1, 1, 1)


def act(emotion: str, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """How strong the expression is in every frame [frames], and every action unit of NAMES [frames], 0..1.1."""
    strength = course(emotion, frames, rng)
    units = {unit: np.zeros(frames) for unit in NAMES}
    for unit, apex in UNITS[emotion].items():
        units[unit] = apex * rng.uniform(0.75, 1.1) * strength
    for unit in units:  # a face is never quite still
        units[unit] = np.clip(units[unit] + rng.normal(0, 0.05) + rng.normal(0, 0.015, frames), 0, 1.1)
    return strength, units


def film(emotion: str, looks: Looks, mouth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """uint8 [frames, size, size, 3], and the frame of the apex. `mouth` [frames] in 0..1 is how far speech opens it."""
    strength, units = act(emotion, len(mouth), rng)
    canvas = _Canvas(len(mouth), rng)
    _head(canvas, looks, units)
    blink = _blinks(len(mouth), rng)
    for side in (-1, 1):
        _eye(canvas, looks, units, side, blink)
    _nose(canvas, looks, units)
    _mouth(canvas, looks, units, mouth)
    return _light(canvas.pixels, rng), int(np.argmax(strength))


def _blinks(frames: int, rng: np.random.Generator) -> np.ndarray:
    closed = np.zeros(frames)
    closed[rng.integers(frames)] = 0.9 * (rng.random() < 0.6)
    return closed


def _head(c: _Canvas, k: Looks, u: dict[int, np.ndarray]) -> None:
    if k.style == 1:
        c.paint(c.ellipse(0, 0.05, k.width * 1.25, k.height * 1.2), k.hair)
    else:
        c.paint(
            c.ellipse(0, -0.16, k.width * 1.1, k.height * 0.95), k.hair if k.style == 0 else k.skin * 0.95
        )
    for side in (-1, 1):
        c.paint(c.ellipse(side * k.width, 0.02, 0.1, 0.17), k.skin * 0.88)
    c.paint(c.ellipse(0, 0.02, k.width, k.height), k.skin)
    if k.style != 2:
        c.paint(c.ellipse(0, -k.height * 0.9, k.width * 0.8, 0.28), k.hair)
    for side in (-1, 1):  # cheeks that rise in a smile
        c.paint(
            c.ellipse(side * 0.4 + c.turn, 0.2 - 0.06 * u[6], 0.13, 0.09),
            k.skin * 0.9 + 20 * np.array([1, 0, 0]),
            0.4,
        )


def _eye(c: _Canvas, k: Looks, u: dict[int, np.ndarray], side: int, blink: np.ndarray) -> None:
    cx, cy = side * k.eyes + c.turn, -0.14
    up = (
        k.eye * np.clip(0.55 + 0.45 * u[5] - 0.3 * u[7] - 0.15 * u[6] - 0.25 * u[15], 0.08, 1.2) * (1 - blink)
    )
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


def _nose(c: _Canvas, k: Looks, u: dict[int, np.ndarray]) -> None:
    tip = 0.2 - 0.05 * u[9]
    c.paint(c.between(c.turn * 1.6, 0.09, (tip - 0.05, 0, -0.03), (tip + 0.02, 0, -0.02)), k.skin * 0.8)
    for side in (-1, 1):
        c.paint(c.ellipse(side * 0.05 + c.turn * 1.6, tip + 0.005, 0.02, 0.015), k.skin * 0.45)
        c.paint(c.stroke(side * (0.2 + 0.1 * u[12]) + c.turn, 0.07, (0.3, side * 0.12, 0), 0.01), k.skin * 0.6,
                float(np.max(np.clip(u[10] + 0.7 * u[12], 0, 1))) * 0.6)  # fmt: skip
    for line in range(3):
        wrinkle = c.stroke(c.turn, 0.11, (-0.14 + 0.075 * line, 0, -0.04), 0.016)
        c.paint(wrinkle * _column(np.clip(u[9], 0, 1)), k.skin * 0.5)
    frown = c.stroke(c.turn - 0.03, 0.016, (-0.3, 0, 0), 0.08) + c.stroke(
        c.turn + 0.03, 0.016, (-0.3, 0, 0), 0.08
    )
    c.paint(np.clip(frown, 0, 1) * _column(np.clip(u[4], 0, 1)), k.skin * 0.6)


def _mouth(c: _Canvas, k: Looks, u: dict[int, np.ndarray], speech: np.ndarray) -> None:
    half = k.mouth * (1 + 0.35 * u[12] - 0.25 * u[23] - 0.2 * u[26] - 0.15 * u[10])
    height = 0.48 - 0.03 * u[17] + 0.02 * u[26]
    corner = -0.19 * u[12] + 0.16 * u[15] + 0.02 * u[10]
    thick = 0.05 * (1 - 0.65 * u[23])
    gap = 0.004 + 0.05 * u[25] + 0.17 * u[26] + 0.07 * speech * (1 - 0.5 * u[23])
    up, low = height - 0.35 * gap - 0.09 * u[10], height + 0.65 * gap
    bend_up, bend_low = corner + (height - up), corner - (low - height)
    c.paint(
        c.between(
            c.turn, half * 1.06, (up - thick, 0, bend_up + thick), (low + thick * 1.2, 0, bend_low - thick)
        ),
        k.lips,
    )
    hole = c.between(c.turn, half * 0.97, (up, 0, bend_up), (low, 0, bend_low))
    c.paint(hole, (55, 15, 20))
    teeth = c.between(c.turn, half * 0.8, (up, 0, bend_up), (up + 0.45 * np.minimum(gap, 0.1), 0, bend_up))
    c.paint(teeth * hole, (240, 238, 230))
    c.paint(c.stroke(c.turn, 0.1, (height + 0.17 - 0.03 * u[17], 0, 0.05), 0.01), k.skin * 0.7, 0.3)
    for line in (0.0, 0.04):  # a raised chin is dimpled
        dimples = c.stroke(c.turn, 0.07, (height + 0.2 + line, 0, 0.02), 0.009)
        c.paint(dimples * _column(np.clip(u[17], 0, 1)), k.skin * 0.6)
    if k.moustache:
        c.paint(c.between(c.turn, 0.2, (up - 0.1, 0, 0.08), (up - 0.05, 0, 0.05)), k.hair * 0.8)


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from some direction of some colour, and the noise of a sensor."""
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.3) * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    tint = (rng.uniform(0.7, 1.15) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    noise = rng.normal(0, rng.uniform(1, 3), (1, SIZE, SIZE, 1)).astype(np.float32)
    return np.clip(pixels * (field[None, :, :, None] * tint).astype(np.float32) + noise, 0, 255).astype(
        np.uint8
    )
