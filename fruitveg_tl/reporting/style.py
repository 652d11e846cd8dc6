"""How every figure looks, and the one way it is saved.

Every figure is readable in grey print: lines differ in style, points in shape, and the heat maps
run from light to dark.
"""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from fruitveg_tl.config import PATHS

DPI = 110  # sharp on paper at column width, and small enough for Git
COLOURS = sns.color_palette("colorblind")
MARKERS = "osD^vP"
STYLES = ("-", "--", ":", "-.")
WIDTH = 7.5  # inches: the text width of an A4 page


def save_figure(figure: Figure, name: str) -> Path:
    """Write a figure as `figures/NAME.png`, without a time stamp, and return the file.

    256 colours of the figure's own choice make a third of the size, which notebooks in Git need.
    """
    file = PATHS.figures / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DPI, bbox_inches="tight")
    palette = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(file, optimize=True)
    return file


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, np.ndarray]:
    """Return a figure as wide as the page, `height` inches high, and its (rows, columns) axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def wrapped(names: Sequence[str]) -> list[str]:
    """Break long names for a legend or a tick."""
    return [textwrap.fill(name, 34) for name in names]
