"""Figures. Pure functions that return a Matplotlib figure, and one that saves it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fruitveg_tl.config import FIGURES_DIR

DPI = 110  # sharp on paper at column width, and small enough for Git


def save_figure(figure: Figure, name: str) -> Path:
    """Write a figure as `figures/NAME.png`, without a time stamp, and return the file."""
    file = FIGURES_DIR / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return file


def contact_sheet(pixels: np.ndarray, labels: Sequence[str], columns: int = 6) -> Figure:
    """Show the first photographs of every class, a class per block.

    Args:
        pixels: uint8 (n, size, size, 3).
        labels: class name of each photograph.
        columns: photographs shown of each class.

    Returns:
        a figure with two classes beside each other.
    """
    names = np.asarray(labels)
    classes = sorted(set(names))
    rows = -(-len(classes) // 2)
    figure = Figure(figsize=(2 * columns * 0.62 + 0.3, rows * 0.82), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name in zip(axes.T.flat, classes, strict=False):
        axis.imshow(np.concatenate(pixels[names == name][:columns], axis=1))
        axis.set_title(name, fontsize=8, loc="left", pad=2)
    return figure
