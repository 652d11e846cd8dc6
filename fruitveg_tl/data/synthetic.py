"""The synthetic data set, the default: drawings of fruit and vegetables, generated in seconds.

Every command runs on it without a download. Shapes separate the classes, and colours hardly do:
classes and backgrounds share them, and light tints the whole image. It says nothing about real
images.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fruitveg_tl.config import TEST, TRAIN, VAL
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import exclusive, new_folder

SIZE = 96  # pixels
COUNTS = {TRAIN: 64, VAL: 12, TEST: 24}  # images per class
RED, ORANGE, YELLOW, GREEN, PURPLE = 0.99, 0.07, 0.15, 0.30, 0.80  # hues, 0 to 1
LEAF = (0.32, 0.7, 0.5)
WOOD = (0.08, 0.5, 0.4)
PALE = (0.12, 0.2, 0.9)

# A part is one solid: an array, 0 at its centre and 1 at its edge, and its colour as hue,
# saturation, value. A drawing is a list of parts, back to front.
Part = tuple[np.ndarray, tuple[float, float, float]]
Drawing = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], list[Part]]


def generate(folder: Path, seed: int = 0) -> Path:
    """Draw the synthetic set as `train`, `validation` and `test` folders of class folders.

    Creates and returns `folder` in one atomic step; if it exists, it stays unchanged. The same seed
    gives the same pixels.
    """
    if folder.exists():
        return folder
    with exclusive(folder):
        if folder.exists():  # another process has created it
            return folder
        with new_folder(folder) as temporary, ProcessPoolExecutor() as pool:
            jobs = []
            for number, name in enumerate(sorted(DRAWINGS)):
                for part, (split, count) in enumerate(COUNTS.items()):
                    target = temporary / {VAL: "validation"}.get(split, split) / name
                    target.mkdir(parents=True)
                    for i in range(count):
                        jobs.append((target / f"{i:03d}.png", name, (seed, number, part, i)))
            draw = pool.map(_save, *zip(*jobs, strict=True), chunksize=16)
            list(progress("draw the synthetic set", len(jobs), draw))
    return folder


def render(name: str, seed: int | tuple[int, ...]) -> np.ndarray:
    """Draw an image of a class in `DRAWINGS`, uint8 RGB (SIZE, SIZE, 3); NumPy takes the seed."""
    rng = np.random.default_rng(seed)
    canvas = _background(rng)
    hue = rng.choice(HUES[name]) + rng.normal(0, 0.02)
    u, v = _frame(rng, 0.15, rng.uniform(0.8, 1.0))
    _paint(canvas, DRAWINGS[name](u, v, hue, rng), u, v, rng)
    light = rng.uniform(0.7, 1.2) * rng.uniform(0.8, 1.2, 3)
    noise = rng.normal(0, rng.uniform(0.01, 0.04), canvas.shape)
    return (np.clip(canvas * light + noise, 0, 1) * 255).astype(np.uint8)


def _save(path: Path, name: str, seed: tuple[int, ...]) -> None:
    Image.fromarray(render(name, seed)).save(path)


def _frame(rng, reach: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's coordinates in a randomly placed, rotated and stretched frame."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    x, y = x - rng.uniform(-reach, reach), y - rng.uniform(-reach, reach)
    angle, stretch = rng.normal(0, 0.6), rng.uniform(0.85, 1.18)
    u = (x * np.cos(angle) + y * np.sin(angle)) / scale * stretch
    v = (y * np.cos(angle) - x * np.sin(angle)) / scale / stretch
    return u * rng.choice([-1, 1]), -v  # v points up


def _paint(canvas, parts: list[Part], u, v, rng) -> None:
    """Draw shaded solids on the canvas, in place."""
    lx, ly = rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.6)
    for edge, (hue, saturation, value) in parts:
        height = np.sqrt(np.clip(1 - edge**2, 0, 1))
        shade = 0.45 + 0.5 * height + 0.25 * np.clip(lx * u + ly * v, -1, 1)
        shine = np.clip(height + 0.6 * (lx * u + ly * v) - 0.95, 0, 1)[..., None]
        colour = _rgb(hue, saturation, value) * shade[..., None] + shine
        alpha = np.clip((1 - edge) * 12, 0, 1)[..., None]
        canvas[:] = canvas * (1 - alpha) + colour * alpha


def _background(rng) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    slope = (x * rng.normal() + y * rng.normal()) * 0.1
    canvas = np.clip(_rgb(*_colour(rng)) + slope[..., None], 0, 1)
    for _ in range(rng.integers(0, 4)):
        u, v = _frame(rng, 1.0, rng.uniform(0.1, 0.5))
        square = np.maximum(np.abs(u), np.abs(v * rng.uniform(0.5, 4)))
        edge = square if rng.random() < 0.5 else np.hypot(u, v * rng.uniform(0.5, 2))
        _paint(canvas, [(edge, _colour(rng))], u, v, rng)
    return canvas


def _colour(rng) -> tuple[float, float, float]:
    hue = rng.choice([RED, ORANGE, YELLOW, GREEN, PURPLE]) + rng.normal(0, 0.03)
    return hue, rng.uniform(0.2, 0.9), rng.uniform(0.3, 0.9)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV to RGB for one colour, by the usual formula (Smith 1978)."""
    k = (np.array([5, 3, 1]) + hue * 6) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def _ellipse(u, v, a: float, b: float) -> np.ndarray:
    """Return an ellipse around the origin with half-axes `a` and `b`: 0 there, 1 at the edge."""
    return np.hypot(u / a, v / b)


def _taper(
    u, v, ends: tuple[float, float], widths: tuple[float, float], bend: float = 0.0
) -> np.ndarray:
    """Return a stem or root between two heights, with its half-width at each; the upper first."""
    (top, bottom), (wide, narrow) = ends, widths
    t = (top - v) / (top - bottom)
    width = np.clip(wide + (narrow - wide) * t, 0.02, None)
    return np.maximum(np.abs(u - bend * t**2) / width, np.abs(2 * t - 1) ** 6)


def _polar(u, v) -> tuple[np.ndarray, np.ndarray]:
    """Return the radius, and the angle from vertical in -pi to pi."""
    return np.hypot(u, v), np.arctan2(u, v)


def _leaves(u, v, count: int, length: float, rng) -> list[Part]:
    parts = []
    for angle in np.linspace(-0.9, 0.9, count) + rng.normal(0, 0.1, count):
        a = u * np.cos(angle) - v * np.sin(angle)
        b = u * np.sin(angle) + v * np.cos(angle)
        parts.append((_ellipse(a, b - length / 2, length / 6, length / 1.8), LEAF))
    return parts


def _apple(u, v, hue, rng):
    r, angle = _polar(u, v)
    dent = 0.3 * np.exp(-((angle / 0.35) ** 2)) + 0.12 * np.exp(
        -(((abs(angle) - np.pi) / 0.3) ** 2)
    )
    return [(r / (0.95 - dent), (hue, 0.8, 0.85)), (_taper(u, v, (1.1, 0.5), (0.07, 0.05)), WOOD)]


def _banana(u, v, hue, rng):
    r, angle = _polar(u, v + 1.1)
    width = 0.27 * np.sqrt(np.clip(1.02 - (angle / 0.95) ** 2, 0.02, 1))
    body = np.maximum(np.abs(r - 1.2) / width, (np.abs(angle) / 0.98) ** 8)
    ends = np.hypot((np.abs(angle) - 0.97) / 0.09, (r - 1.2) / 0.1)
    return [(body, (hue, 0.75, 0.9)), (ends, WOOD)]


def _carrot(u, v, hue, rng):
    rings = 0.06 * (np.sin(v * 25) > 0.8)
    body = _taper(u, v, (0.6, -1.3), (0.36, 0.03), rng.normal(0, 0.15))
    return _leaves(u, v - 0.5, 5, 0.9, rng) + [(body + rings, (hue, 0.85, 0.9))]


def _cherry(u, v, hue, rng):
    stems = [_taper(u + s * 0.45 * (0.9 - v) / 1.2, v, (0.95, -0.2), (0.05, 0.05)) for s in (-1, 1)]
    fruit = [
        _ellipse(u - (s * 0.5), v - (-0.45 + rng.normal(0, 0.08)), 0.42, 0.42) for s in (-1, 1)
    ]
    return [(stem, LEAF) for stem in stems] + [(disc, (hue, 0.85, 0.7)) for disc in fruit]


def _grapes(u, v, hue, rng):
    places = [(x - row / 2, row) for row in range(5) for x in range(row + 1)]
    return [(_taper(u, v, (1.3, 0.7), (0.06, 0.06)), WOOD)] + [
        (
            _ellipse(u - (x * 0.42 + rng.normal(0, 0.04)), v - (-1 + row * 0.42), 0.27, 0.27),
            (hue, 0.6, rng.uniform(0.5, 0.8)),
        )
        for x, row in rng.permutation(places)
    ]


def _mushroom(u, v, hue, rng):
    cap = np.where(v > 0, _ellipse(u, v, 0.95, 0.8), _ellipse(u, v, 0.95, 0.15))
    return [(_taper(u, v, (0.1, -0.95), (0.25, 0.36)), PALE), (cap, (hue, 0.35, 0.75))]


def _pear(u, v, hue, rng):
    body = np.minimum(_ellipse(u, v + 0.4, 0.68, 0.62), _ellipse(u, v - 0.2, 0.4, 0.78))
    return [(body, (hue, 0.65, 0.8)), (_taper(u, v, (1.35, 0.85), (0.06, 0.05), 0.1), WOOD)]


def _tomato(u, v, hue, rng):
    r, angle = _polar(u * 0.95, v * 1.12)
    star_r, star = _polar(u, (v - 0.45) * 2)
    return [
        (r / (0.95 + 0.04 * np.cos(5 * angle)), (hue, 0.85, 0.85)),
        (star_r / (0.3 + 0.28 * np.cos(5 * star)), LEAF),
    ]


DRAWINGS: dict[str, Drawing] = {
    "apple": _apple,
    "banana": _banana,
    "carrot": _carrot,
    "cherry": _cherry,
    "grapes": _grapes,
    "mushroom": _mushroom,
    "pear": _pear,
    "tomato": _tomato,
}

HUES: dict[str, tuple[float, ...]] = {
    "apple": (RED, GREEN, YELLOW),
    "banana": (YELLOW, GREEN),
    "carrot": (ORANGE, PURPLE, YELLOW),
    "cherry": (RED, YELLOW),
    "grapes": (PURPLE, GREEN),
    "mushroom": (ORANGE, YELLOW),
    "pear": (GREEN, YELLOW, RED),
    "tomato": (RED, GREEN, ORANGE),
}
