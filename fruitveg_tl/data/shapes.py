"""The drawings of the synthetic set: sixteen fruits and vegetables as lists of shaded solids."""

from collections.abc import Callable

import numpy as np

RED, ORANGE, YELLOW, GREEN, PURPLE = 0.99, 0.07, 0.15, 0.30, 0.80  # hues, 0 to 1
LEAF = (0.32, 0.7, 0.5)
WOOD = (0.08, 0.5, 0.4)
PALE = (0.12, 0.2, 0.9)

# A part is one solid: an array that grows from 0 in its middle to 1 at its edge (and on outside),
# and its colour as hue, saturation, value. A drawing is a list of parts, back to front.
Part = tuple[np.ndarray, tuple[float, float, float]]
Drawing = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], list[Part]]


def ellipse(u, v, a: float, b: float) -> np.ndarray:
    """Return an ellipse around the origin with half-axes `a` and `b`: 0 there, 1 at the edge."""
    return np.hypot(u / a, v / b)


def _taper(
    u, v, ends: tuple[float, float], widths: tuple[float, float], bend: float = 0.0
) -> np.ndarray:
    """A stem or root between two heights, with its half-width at either; the upper one first."""
    (top, bottom), (wide, narrow) = ends, widths
    t = (top - v) / (top - bottom)
    width = np.clip(wide + (narrow - wide) * t, 0.02, None)
    return np.maximum(np.abs(u - bend * t**2) / width, np.abs(2 * t - 1) ** 6)


def _polar(u, v) -> tuple[np.ndarray, np.ndarray]:
    """Radius, and angle from the upright direction in -pi to pi."""
    return np.hypot(u, v), np.arctan2(u, v)


def _leaves(u, v, count: int, length: float, rng) -> list[Part]:
    parts = []
    for angle in np.linspace(-0.9, 0.9, count) + rng.normal(0, 0.1, count):
        a = u * np.cos(angle) - v * np.sin(angle)
        b = u * np.sin(angle) + v * np.cos(angle)
        parts.append((ellipse(a, b - length / 2, length / 6, length / 1.8), LEAF))
    return parts


def _apple(u, v, hue, rng):
    r, angle = _polar(u, v)
    dent = 0.3 * np.exp(-((angle / 0.35) ** 2)) + 0.12 * np.exp(
        -(((abs(angle) - np.pi) / 0.3) ** 2)
    )
    return [(r / (0.95 - dent), (hue, 0.8, 0.85)), (_taper(u, v, (1.1, 0.5), (0.07, 0.05)), WOOD)]


def _aubergine(u, v, hue, rng):
    body = np.minimum(ellipse(u, v + 0.4, 0.55, 0.7), ellipse(u, v - 0.25, 0.38, 0.8))
    return [
        (body, (hue, 0.7, 0.45)),
        (ellipse(u, v - 0.95, 0.33, 0.16), LEAF),
        (_taper(u, v, (1.35, 1.0), (0.09, 0.09)), LEAF),
    ]


def _banana(u, v, hue, rng):
    r, angle = _polar(u, v + 1.1)
    width = 0.27 * np.sqrt(np.clip(1.02 - (angle / 0.95) ** 2, 0.02, 1))
    body = np.maximum(np.abs(r - 1.2) / width, (np.abs(angle) / 0.98) ** 8)
    ends = np.hypot((np.abs(angle) - 0.97) / 0.09, (r - 1.2) / 0.1)
    return [(body, (hue, 0.75, 0.9)), (ends, WOOD)]


def _broccoli(u, v, hue, rng):
    crown = rng.uniform(-1, 1, (26, 2)) * (0.8, 0.42) + (0, 0.4)
    return [(_taper(u, v, (0.4, -1.0), (0.35, 0.22)), (hue, 0.4, 0.75))] + [
        (ellipse(u - x, v - y, 0.24, 0.24), (hue, 0.7, rng.uniform(0.35, 0.6))) for x, y in crown
    ]


def _carrot(u, v, hue, rng):
    rings = 0.06 * (np.sin(v * 25) > 0.8)
    body = _taper(u, v, (0.6, -1.3), (0.36, 0.03), rng.normal(0, 0.15))
    return _leaves(u, v - 0.5, 5, 0.9, rng) + [(body + rings, (hue, 0.85, 0.9))]


def _cherry(u, v, hue, rng):
    stems = [_taper(u + s * 0.45 * (0.9 - v) / 1.2, v, (0.95, -0.2), (0.05, 0.05)) for s in (-1, 1)]
    fruit = [ellipse(u - (s * 0.5), v - (-0.45 + rng.normal(0, 0.08)), 0.42, 0.42) for s in (-1, 1)]
    return [(stem, LEAF) for stem in stems] + [(disc, (hue, 0.85, 0.7)) for disc in fruit]


def _chilli(u, v, hue, rng):
    bend = rng.choice([-1, 1]) * rng.uniform(0.3, 0.7)
    return [
        (_taper(u, v, (0.8, -1.2), (0.24, 0.02), bend), (hue, 0.9, 0.8)),
        (ellipse(u, v - 0.78, 0.26, 0.14), LEAF),
        (_taper(u, v, (1.25, 0.75), (0.06, 0.06)), LEAF),
    ]


def _grapes(u, v, hue, rng):
    places = [(x - row / 2, row) for row in range(5) for x in range(row + 1)]
    return [(_taper(u, v, (1.3, 0.7), (0.06, 0.06)), WOOD)] + [
        (
            ellipse(u - (x * 0.42 + rng.normal(0, 0.04)), v - (-1 + row * 0.42), 0.27, 0.27),
            (hue, 0.6, rng.uniform(0.5, 0.8)),
        )
        for x, row in rng.permutation(places)
    ]


def _kiwi(u, v, hue, rng):
    r, angle = _polar(u, v * 1.1)
    rays = 0.05 * np.cos(angle * 16)
    seeds = np.hypot((r - 0.42) / 0.09, np.sin(angle * 9) / 0.8)
    return [
        (r, WOOD),
        (r / 0.9 + rays, (hue, 0.65, 0.75)),
        (seeds, (0, 0, 0.08)),
        (r / 0.25, PALE),
    ]


def _lemon(u, v, hue, rng):
    r, angle = _polar(u, v * 1.35)
    tips = 0.25 * np.exp(-(((np.abs(angle) - np.pi / 2) / 0.22) ** 2))
    grain = 0.05 * np.sin(u * 31) * np.sin(v * 29)
    return [(r / (0.85 + tips) + grain, (hue, 0.75, 0.9))]


def _mushroom(u, v, hue, rng):
    cap = np.where(v > 0, ellipse(u, v, 0.95, 0.8), ellipse(u, v, 0.95, 0.15))
    return [(_taper(u, v, (0.1, -0.95), (0.25, 0.36)), PALE), (cap, (hue, 0.35, 0.75))]


def _onion(u, v, hue, rng):
    r, angle = _polar(u, v)
    tip = 0.4 * np.exp(-((angle / 0.22) ** 2)) + 0.1 * np.exp(-(((abs(angle) - np.pi) / 0.2) ** 2))
    meridian = np.arcsin(np.clip(u / np.sqrt(np.clip(1 - v**2, 0.01, 1)), -1, 1))
    stripes = 0.1 * np.cos(14 * meridian)
    return [(r / (0.82 + tip) + stripes * (r < 0.75), (hue, 0.5, 0.8))]


def _pear(u, v, hue, rng):
    body = np.minimum(ellipse(u, v + 0.4, 0.68, 0.62), ellipse(u, v - 0.2, 0.4, 0.78))
    return [(body, (hue, 0.65, 0.8)), (_taper(u, v, (1.35, 0.85), (0.06, 0.05), 0.1), WOOD)]


def _strawberry(u, v, hue, rng):
    r, angle = _polar(u, v)
    body = r / (0.95 - 0.38 * np.sin(np.abs(angle) / 1.35) ** 4 * (np.abs(angle) < 2.9))
    seeds = np.hypot(np.sin(u * 11), np.sin(v * 9 + (np.floor(u * 3.5) % 2) * 1.5)) / 0.38
    return [
        (body, (hue, 0.85, 0.85)),
        (np.maximum(seeds, body / 0.9), (YELLOW, 0.6, 0.9)),
        *_leaves(u, v - 0.75, 5, 0.45, rng),
    ]


def _tomato(u, v, hue, rng):
    r, angle = _polar(u * 0.95, v * 1.12)
    star_r, star = _polar(u, (v - 0.45) * 2)
    return [
        (r / (0.95 + 0.04 * np.cos(5 * angle)), (hue, 0.85, 0.85)),
        (star_r / (0.3 + 0.28 * np.cos(5 * star)), LEAF),
    ]


def _watermelon(u, v, hue, rng):
    slices = [(1.0, (GREEN, 0.7, 0.4)), (0.9, PALE), (0.8, (hue, 0.7, 0.85))]
    seeds = np.hypot(np.sin(u * 8), np.sin(v * 8)) / 0.3
    r = ellipse(u, v - 0.45, 1.05, 1.05)
    flat = np.clip((v - 0.4) * 14, 0, None)
    return [(np.maximum(r / s, flat), colour) for s, colour in slices] + [
        (np.maximum(seeds, np.maximum(r / 0.7, flat)), (0, 0, 0.1))
    ]


DRAWINGS: dict[str, Drawing] = {
    "apple": _apple,
    "aubergine": _aubergine,
    "banana": _banana,
    "broccoli": _broccoli,
    "carrot": _carrot,
    "cherry": _cherry,
    "chilli": _chilli,
    "grapes": _grapes,
    "kiwi": _kiwi,
    "lemon": _lemon,
    "mushroom": _mushroom,
    "onion": _onion,
    "pear": _pear,
    "strawberry": _strawberry,
    "tomato": _tomato,
    "watermelon": _watermelon,
}

HUES: dict[str, tuple[float, ...]] = {
    "apple": (RED, GREEN, YELLOW),
    "aubergine": (PURPLE, GREEN),
    "banana": (YELLOW, GREEN),
    "broccoli": (GREEN, PURPLE),
    "carrot": (ORANGE, PURPLE, YELLOW),
    "cherry": (RED, YELLOW),
    "chilli": (RED, GREEN, ORANGE),
    "grapes": (PURPLE, GREEN),
    "kiwi": (GREEN, YELLOW),
    "lemon": (YELLOW, GREEN),
    "mushroom": (ORANGE, YELLOW),
    "onion": (ORANGE, PURPLE, YELLOW),
    "pear": (GREEN, YELLOW, RED),
    "strawberry": (RED, ORANGE),
    "tomato": (RED, GREEN, ORANGE),
    "watermelon": (RED, YELLOW),
}
