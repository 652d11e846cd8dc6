"""The synthetic set: drawings of fruit and vegetables, made in seconds, the default everywhere.

It exists so that every command runs anywhere without a download, and shows transfer at work: what
the bundled weights know of shapes tells the classes apart, colour hardly does, because classes
share their colours, light tints the whole image, and what lies behind has the colours of the fruit.
Nothing about real images follows from it.
"""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fruitveg_tl.data.shapes import (
    DRAWINGS,
    GREEN,
    HUES,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Part,
)
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import exclusive, new_folder

SIZE = 96  # pixels
COUNTS = {"train": 64, "val": 12, "test": 24}  # images per class


def generate(folder: Path, seed: int = 0) -> Path:
    """Draw the synthetic set as `train`, `validation` and `test` folders of class folders.

    Args:
        folder: made in one atomic step; if it exists, it is kept as it is.
        seed: the same seed gives the same pixels.

    Returns:
        `folder`.
    """
    if folder.exists():
        return folder
    with exclusive(folder):
        if folder.exists():  # another process has made it meanwhile
            return folder
        with new_folder(folder) as temporary, ProcessPoolExecutor() as pool:
            jobs = []
            for number, name in enumerate(sorted(DRAWINGS)):
                for part, (split, count) in enumerate(COUNTS.items()):
                    target = temporary / {"val": "validation"}.get(split, split) / name
                    target.mkdir(parents=True)
                    for i in range(count):
                        jobs.append((target / f"{i:03d}.png", name, (seed, number, part, i)))
            draw = pool.map(_save, *zip(*jobs, strict=True), chunksize=16)
            list(progress("draw the synthetic set", len(jobs), draw))
    return folder


def render(name: str, seed: int | tuple[int, ...]) -> np.ndarray:
    """Draw one image of a class.

    Args:
        name: a key of `DRAWINGS`.
        seed: anything `numpy.random.default_rng` takes.

    Returns:
        uint8 array of shape (SIZE, SIZE, 3), RGB.
    """
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
    """Coordinates of every pixel in a randomly placed, turned and stretched object's own frame."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    x, y = x - rng.uniform(-reach, reach), y - rng.uniform(-reach, reach)
    angle, stretch = rng.normal(0, 0.6), rng.uniform(0.85, 1.18)
    u = (x * np.cos(angle) + y * np.sin(angle)) / scale * stretch
    v = (y * np.cos(angle) - x * np.sin(angle)) / scale / stretch
    return u * rng.choice([-1, 1]), -v  # v points up


def _paint(canvas, parts: list[Part], u, v, rng) -> None:
    """Lay shaded solids over the canvas, in place."""
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
