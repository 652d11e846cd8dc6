"""Figures of the images themselves: pure functions that return a Matplotlib figure."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fruitveg_tl.config import SPLITS
from fruitveg_tl.reporting.style import COLOURS, STYLES, WIDTH, drawable, new_figure, tick

LARGEST = 1.2  # inches: side of an image in a grid


def contact_sheet(
    pixels: np.ndarray, labels: Sequence[str], columns: int = 6, blocks: int = 2
) -> Figure:
    """Show the first images of every class, a class per block.

    Args:
        pixels: uint8 (n, size, size, 3).
        labels: class name of each image.
        columns: images shown of each class.
        blocks: classes beside each other.
    """
    names = np.asarray(labels)
    classes = sorted(set(names))
    rows = -(-len(classes) // blocks)
    width = blocks * columns * 0.54 + 0.3
    figure = Figure(figsize=(width, rows * 0.74), layout="constrained")
    axes = figure.subplots(rows, blocks, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name in zip(axes.T.flat, classes, strict=False):
        axis.imshow(np.concatenate(pixels[names == name][:columns], axis=1))
        axis.set_title(tick(name), fontsize=8, loc="left", pad=2)
    return figure


def class_balance(index: pd.DataFrame) -> Figure:
    """Show how many images each class has in each split.

    Args:
        index: of an `Images`.
    """
    counts = index.groupby(["label", "split"]).size().unstack(fill_value=0)
    figure, axes = new_figure(0.145 * len(counts) + 0.8, 1, 3, sharey=True)
    for axis, split, colour in zip(axes[0], SPLITS, COLOURS, strict=False):
        bars = axis.barh(range(len(counts)), counts[split], color=colour)
        axis.set_yticks(range(len(counts)), [tick(name) for name in counts.index])
        axis.bar_label(bars, fontsize=6, padding=1)
        axis.set_title(f"{split}: {counts[split].sum()} images", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.15, y=0.01)
    axes[0, 0].invert_yaxis()
    sns.despine(figure)
    return figure


def distributions(values: pd.DataFrame, splits: pd.Series) -> Figure:
    """Show how each column of `values` is distributed, a line per split.

    Args:
        values: one row per image, e.g. from `audit.quality`.
        splits: "train", "val" or "test" of each.
    """
    figure, axes = new_figure(1.9, 1, values.shape[1])
    for axis, name in zip(axes[0], values, strict=True):
        for split, colour, style in zip(SPLITS, COLOURS, STYLES, strict=False):
            sns.kdeplot(
                values.loc[(splits == split).to_numpy(), name],
                ax=axis, color=colour, linestyle=style, label=split, cut=0, warn_singular=False,
            )  # fmt: skip
        axis.set(ylabel="", yticks=[])
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(frameon=False, fontsize=7)
    sns.despine(figure)
    return figure


def image_grid(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 6, scale: float = 1.0
) -> Figure:
    """Show images in a grid.

    Args:
        images: each (height, width, 3), uint8, or floats in 0..1.
        titles: a line or two above each.
        columns: how many beside each other.
        scale: size of the titles.
    """
    rows, side = max(1, -(-len(images) // columns)), min(WIDTH / columns, LARGEST)
    figure = Figure(figsize=(side * columns, rows * (side + 0.2)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.01, w_pad=0.01, hspace=0, wspace=0)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(drawable(title), fontsize=7 * scale, pad=2)
    return figure


def heat(pixels: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Darken images where a heat map is low: readable in grey, unlike a colour overlay.

    Args:
        pixels: uint8 (n, size, size, 3).
        maps: (n, size, size) in 0..1.

    Returns:
        floats (n, size, size, 3) in 0..1.
    """
    return pixels / 255 * (0.15 + 0.85 * maps[..., None])


def preprocessed(tensors: Mapping[str, np.ndarray]) -> Figure:
    """Show how the values of one image are distributed after each backbone's preprocessing.

    Args:
        tensors: name to array of any shape whose last axis is the three channels.
    """
    figure, axes = new_figure(2.2, 1, len(tensors))
    for axis, (name, tensor) in zip(axes[0], tensors.items(), strict=True):
        for channel, style in enumerate(STYLES[:3]):
            values = np.asarray(tensor)[..., channel].ravel()
            axis.hist(values, 40, histtype="step", linestyle=style, color=COLOURS[channel],
                      label=f"channel {channel}")  # fmt: skip
        axis.set_title(name, fontsize=9)
        axis.set(yticks=[], xlabel="value")
    axes[0, 0].legend(frameon=False, fontsize=7)
    sns.despine(figure)
    return figure
