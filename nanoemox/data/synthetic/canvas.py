"""Drawing on film: a rasteriser of ellipses and curves in NumPy.

Coordinates are those of the face: its centre is (0, 0), x to the right, y down; the head reaches about 0.7 to
either side and 0.95 up and down. A shape is drawn for all frames at once, as a coverage [frames, SIZE, SIZE]
in 0..1.
"""

import numpy as np

SIZE = 112  # pixels, width and height
RATE = 8  # frames per second
PerFrame = np.ndarray | float  # a number for every frame [frames], or the same for all
Curve = tuple[PerFrame, PerFrame, PerFrame]  # parabola: height at its middle, slope, bend


class Canvas:
    """Frames in the coordinates of a face that moves.

    Attributes:
        x, y: face coordinates of every pixel [frames, SIZE, SIZE].
        scale: pixels per unit of the coordinates.
        turn: of the head, which shifts the features sideways [frames].
        pixels: RGB, float32 [frames, SIZE, SIZE, 3] in 0..255.
    """

    def __init__(self, frames: int, rng: np.random.Generator):
        """Draw the background; `rng` decides it and the movement of the head."""
        seconds = np.arange(frames) / RATE
        sway = [
            rng.uniform(0.3, 1.0) * np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * seconds + rng.random()))
            for _ in range(3)
        ]
        extent = rng.uniform(0.95, 1.1)
        grid = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 * extent / SIZE) - extent
        roll = column(rng.uniform(-0.12, 0.12) + 0.04 * sway[0])
        x = grid[None, None, :] - column(rng.uniform(-0.12, 0.12) + 0.03 * sway[1])
        y = grid[None, :, None] - column(rng.uniform(-0.1, 0.1) + 0.03 * sway[2])
        self.x = x * np.cos(roll) + y * np.sin(roll)
        self.y = y * np.cos(roll) - x * np.sin(roll)
        self.scale = SIZE / (2 * extent)
        self.turn = (rng.uniform(-0.06, 0.06) + 0.02 * sway[1]).astype(np.float32)
        self.pixels = _background(frames, rng)

    def paint(
        self, coverage: np.ndarray, colour: np.ndarray | tuple[int, int, int], opacity: float = 1.0
    ) -> None:
        """Blend a colour (RGB, 0..255) into the pixels where the coverage is above 0."""
        rows = np.flatnonzero(coverage.any((0, 2)))
        if not len(rows):
            return
        columns = np.flatnonzero(coverage.any((0, 1)))
        area = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        mask = coverage[area][..., None] * np.float32(opacity)
        self.pixels[area] += mask * (np.asarray(colour, np.float32) - self.pixels[area])

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Coverage of the area where a distance (in face units) is positive, with soft edges."""
        return np.clip(distance * self.scale + 0.5, 0, 1)

    def ellipse(self, cx: PerFrame, cy: PerFrame, rx: PerFrame, ry: PerFrame) -> np.ndarray:
        """Coverage of an ellipse: centre and radii."""
        cx, cy, rx, ry = map(column, (cx, cy, rx, ry))
        radius = np.hypot((self.x - cx) / rx, (self.y - cy) / ry)
        return self.inside((1 - radius) * np.minimum(rx, ry))

    def between(self, cx: PerFrame, half: PerFrame, upper: Curve, lower: Curve) -> np.ndarray:
        """Coverage of the area between two parabolas over cx - half..cx + half."""
        s = (self.x - column(cx)) / column(half)
        ends = self.inside((1 - np.abs(s)) * column(half))
        below_upper = self.inside(self.y - _parabola(upper, s))
        above_lower = self.inside(_parabola(lower, s) - self.y)
        return ends * below_upper * above_lower

    def stroke(self, cx: PerFrame, half: PerFrame, curve: Curve, width: float) -> np.ndarray:
        """Coverage of a parabola that is drawn `width` thick to either side."""
        height, slope, bend = curve
        return self.between(cx, half, (height - width, slope, bend), (height + width, slope, bend))


def _background(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A vertical gradient with up to three rectangles, the same in every frame."""
    v = np.linspace(0, 1, SIZE, dtype=np.float32)
    top, bottom, spot = rng.uniform(30, 225, (3, 3)).astype(np.float32)
    picture = top + (bottom - top) * v[:, None, None] * np.ones((1, SIZE, 1), np.float32)
    for _ in range(rng.integers(0, 4)):
        a, b = rng.integers(0, SIZE, 2)
        picture[a : a + rng.integers(10, 60), b : b + rng.integers(10, 60)] = spot * rng.uniform(0.5, 1.1)
    return np.repeat(picture[None], frames, 0)


def _parabola(curve: Curve, s: np.ndarray) -> np.ndarray:
    height, slope, bend = map(column, curve)
    return height + s * (slope + s * bend)


def column(value: PerFrame) -> np.ndarray:
    """A number per frame as float32 [frames, 1, 1]."""
    return np.asarray(value, np.float32).reshape(-1, 1, 1)
