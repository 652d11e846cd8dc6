"""How every figure looks, and the one way it is saved.

Every figure is readable in grey print: lines differ in style, points in shape, and the heat maps
run from light to dark.
"""

import textwrap
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from fruitveg_tl.config import PATHS, variable
from fruitveg_tl.utils.storage import new_file

DPI = 110  # sharp on paper at column width, and small enough for Git
COLOURS = sns.color_palette("colorblind")
MARKERS = "osD^vP"
STYLES = ("-", "--", ":", "-.")
LONGEST = 28  # characters of a name at an axis
WIDTH = 6.8  # inches: the text width of the report
# Matplotlib's own font first, then what a system may have for other scripts.
FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Thai", "Noto Sans Devanagari",
    "Noto Sans Arabic", "Noto Sans", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip
matplotlib.rcParams["font.family"] = [
    name for name in FONTS if name in font_manager.fontManager.get_font_names()
]
matplotlib.rcParams["text.parse_math"] = False  # a class may be called "$5 apples"


def save_figure(figure: Figure, name: str) -> Path:
    """Write a figure, without a time stamp, and return the file.

    Below `figures/` only by `make notebooks`, which is for committing; else below `data/runs`.
    Notebooks in Git need small files. A figure of images is a JPEG; any other a PNG of 256 colours
    of its own choice, a third of the size.
    """
    photographic = any(axis.images for axis in figure.axes)
    folder = PATHS.figures if variable("COMMIT") else PATHS.runs / "figures"
    file = folder / f"{name}.{'jpg' if photographic else 'png'}"
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DPI, bbox_inches="tight")
    image = Image.open(drawn).convert("RGB")
    options = {"quality": 85, "subsampling": 0} if photographic else {}
    if not photographic:
        image = image.quantize(256, dither=Image.Dither.NONE)
    with new_file(file) as temporary:
        image.save(temporary, optimize=True, dpi=(DPI, DPI), **options)
    return file


def drawable(text: str) -> str:
    """Return a text whose characters all have a glyph: of others, the code, e.g. "U+82F9".

    An empty box would stand for each of them alike.
    """
    known = _characters()
    return "".join(c if ord(c) in known or c == "\n" else f"U+{ord(c):04X} " for c in text)


def tick(name: str) -> str:
    """Return a class's name for an axis: drawable, and short enough to leave room for the rest."""
    line = " ".join(drawable(name).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


@cache
def _characters() -> frozenset[int]:
    files = (font_manager.findfont(name) for name in matplotlib.rcParams["font.family"])
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, np.ndarray]:
    """Return a figure as wide as the page, `height` inches high, and its (rows, columns) axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def wrapped(names: Sequence[str]) -> list[str]:
    """Break long names for a legend or a tick."""
    return [textwrap.fill(drawable(name), 34) for name in names]
