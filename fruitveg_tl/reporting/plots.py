"""Figures of images and of results: functions that return a Matplotlib figure, and how it is saved.

Every figure is readable in grey print: lines differ in style, points in shape, and the heat maps
run from light to dark.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fruitveg_tl.config import PATHS, SPLITS, variable
from fruitveg_tl.utils.storage import new_file

if TYPE_CHECKING:
    import keras

DPI = 110  # sharp on paper at column width, and small enough for Git
COLOURS = sns.color_palette("colorblind")
MARKERS = "osD^vP"
STYLES = ("-", "--", ":", "-.")
LONGEST = 28  # characters of a name at an axis
WIDTH = 6.8  # inches: the text width of the report
LARGEST = 1.2  # inches: side of an image in a grid
LEAST_SHOWN = 0.02  # of a class's images, in a confusion matrix
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

    `make notebooks` writes to `figures/`, for committing; everything else below `data/runs`.
    Notebooks in Git need small files: a figure of images becomes a JPEG, any other a PNG of 256
    colours, a third of the size.
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


# --- names ----------------------------------------------------------------------------------------


def drawable(text: str) -> str:
    """Return a text whose characters all have a glyph; any other becomes a code like "U+82F9"."""
    known = _characters()
    return "".join(c if ord(c) in known or c == "\n" else f"U+{ord(c):04X} " for c in text)


@cache
def _characters() -> frozenset[int]:
    files = (font_manager.findfont(name) for name in matplotlib.rcParams["font.family"])
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def tick(name: str) -> str:
    """Return a class's name for an axis, at most `LONGEST` characters."""
    line = " ".join(drawable(name).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def wrapped(name: str) -> str:
    """Break a long name for a legend or a tick."""
    return textwrap.fill(drawable(name), 34)


# --- shared by all figures ------------------------------------------------------------------------


def _new_figure(height: float, rows: int = 1, columns: int = 1, **options):
    """Return a figure as wide as the page, `height` inches high, and its (rows, columns) axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _legend_above(figure: Figure, columns: int, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8
    )


def _point(number: int) -> dict:
    """Return the shape and colour of one kind of point."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": "none",
    }


def _line(number: int) -> dict:
    return _point(number) | {"linestyle": STYLES[number % len(STYLES)], "markersize": 4}


def _label_places(axis: Axes, places: Sequence[float]) -> None:
    """Label these places of an axis, and no other."""
    axis.set_xticks(places, [f"{place:.3g}" for place in places], fontsize=8)
    axis.minorticks_off()


def _apart(values: Iterable[float]) -> list[float]:
    """Leave out what a logarithmic axis would write over its neighbour."""
    ticks = sorted(values)
    least = (ticks[-1] / ticks[0]) ** 0.15
    kept = ticks[:1]
    for value in ticks:
        if value / kept[-1] > least:
            kept.append(value)
    return kept


# --- images ---------------------------------------------------------------------------------------


def contact_sheet(
    pixels: np.ndarray, labels: Sequence[str], columns: int = 6, blocks: int = 2
) -> Figure:
    """Show the first `columns` images of every class, with `blocks` classes side by side.

    `pixels` are uint8 (n, size, size, 3).
    """
    names = np.asarray(labels)
    classes = sorted(set(names))
    rows = math.ceil(len(classes) / blocks)
    width = blocks * columns * 0.54 + 0.3
    figure = Figure(figsize=(width, rows * 0.74), layout="constrained")
    axes = figure.subplots(rows, blocks, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name in zip(axes.T.flat, classes, strict=False):
        axis.imshow(np.concatenate(pixels[names == name][:columns], axis=1))
        axis.set_title(tick(name), fontsize=8, loc="left", pad=2)
    return figure


def image_grid(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 6, scale: float = 1.0
) -> Figure:
    """Show images in a grid, with a title of one or two lines above each; `scale` enlarges titles.

    An image is (height, width, 3), uint8 or floats in 0..1.
    """
    rows, side = max(1, math.ceil(len(images) / columns)), min(WIDTH / columns, LARGEST)
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
    """Darken uint8 images (n, size, size, 3) by maps (n, size, size) in 0..1, to floats in 0..1."""
    # Readable in grey, unlike a colour overlay.
    return pixels / 255 * (0.15 + 0.85 * maps[..., None])


def class_balance(index: pd.DataFrame) -> Figure:
    """Show how many images each class has in each split, from the index of `Images`."""
    counts = index.groupby(["label", "split"]).size().unstack(fill_value=0)
    figure, axes = _new_figure(0.145 * len(counts) + 0.8, 1, 3, sharey=True)
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
    """Show the distribution of each column of `values`, a row per image; a line per split."""
    figure, axes = _new_figure(1.9, 1, values.shape[1])
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


def preprocessed(tensors: Mapping[str, np.ndarray]) -> Figure:
    """Show the values of an image after each preprocessing; channels are the last axis."""
    figure, axes = _new_figure(2.2, 1, len(tensors))
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


# --- networks and their results -------------------------------------------------------------------


def frozen_and_trained(
    model: "keras.Model", frozen: "keras.Model", norms: Sequence[str] = ()
) -> Figure:
    """Draw the parameters of each layer; those in `frozen` and `norms` (BatchNorm) are grey."""
    layers = [layer for layer in model.layers if layer.weights]
    boundary = {layer.name for layer in frozen.layers}
    never = boundary.union(norms)
    figure, axes = _new_figure(1.45)
    axis = axes[0, 0]
    colours = ["0.75" if layer.name in never else COLOURS[0] for layer in layers]
    counts = [layer.count_params() for layer in layers]
    axis.bar(range(len(layers)), counts, color=colours, width=1, edgecolor="white", linewidth=0.3)
    cut = sum(layer.name in boundary for layer in layers) - 0.5
    axis.axvline(cut, color="black", linestyle="--", linewidth=1)
    axis.set(
        yscale="log", xlabel="layers with parameters, input to output", ylabel="parameters",
        xlim=(-1, len(layers)),
    )  # fmt: skip
    axis.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    for text, side in (("frozen ", "right"), (" fine-tuned", "left")):
        axis.text(cut, 1, text, ha=side, va="bottom", transform=axis.get_xaxis_transform())
    sns.despine(figure)
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Show loss and accuracy of all epochs of a run's history, and where each phase starts."""
    epochs = np.arange(1, len(history) + 1)
    starts = np.flatnonzero(history["epoch"] == 0)
    figure, axes = _new_figure(2.3, 1, 2)
    for axis, name in zip(axes[0], ("loss", "accuracy"), strict=True):
        axis.plot(epochs, history[name], STYLES[1], color=COLOURS[1], label="training")
        axis.plot(epochs, history[f"val_{name}"], STYLES[0], color=COLOURS[0], label="validation")
        for above, start in zip((1.01, 1.07), starts, strict=False):
            if start:
                axis.axvline(start + 0.5, color="0.4", linewidth=1)
            # A phase may be narrower than its label.
            place = {"fontsize": 8, "transform": axis.get_xaxis_transform()}
            axis.text(start + 1, above, history["stage"].iloc[start], **place)
        axis.set(xlabel="epoch", ylabel=name)
    axes[0, 0].legend(frameon=False)
    sns.despine(figure)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Show `metrics.confusion`: fractions of each true class as shades, images as numbers.

    Numbers below `LEAST_SHOWN` of a class are left out.
    """
    side = max(3.6, min(6.8, 0.19 * len(classes) + 1.1))
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [tick(name) for name in classes]
    sns.heatmap(
        fractions, ax=axis, cmap="Greys", vmin=0, vmax=1, square=True, linewidths=0.3,
        linecolor="0.9", cbar=False, xticklabels=names, yticklabels=names,
        annot=np.where(fractions >= LEAST_SHOWN, counts.astype(str), ""), fmt="",
        annot_kws={"fontsize": max(6, 9 - len(classes) / 7)},
    )  # fmt: skip
    axis.tick_params(labelsize=max(6, 9 - len(classes) / 11))
    axis.set(xlabel="predicted", ylabel="true class")
    return figure


def scores(intervals: pd.DataFrame) -> Figure:
    """Show scores with their intervals, a panel per score; rows: name, score, value, low, high."""
    panels = intervals.groupby("score", sort=False)
    height = 0.24 * intervals["name"].nunique() + 0.8
    figure, axes = _new_figure(height, 1, panels.ngroups, sharey=True)
    for axis, (score, part) in zip(axes[0], panels, strict=True):
        rows = range(len(part))
        axis.hlines(rows, part["low"], part["high"], color="0.3")
        axis.plot(part["value"], rows, "o", color=COLOURS[0])
        axis.set(xlabel=score, yticks=rows, yticklabels=[wrapped(name) for name in part["name"]])
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.9")
    axes[0, 0].invert_yaxis()
    sns.despine(figure)
    return figure


def dots(table: pd.DataFrame, label: str) -> Figure:
    """Show a table of numbers, a line per row, a kind of point per column; NaN is left out."""
    figure, axes = _new_figure(0.22 * len(table) + 0.9)
    axis, rows = axes[0, 0], range(len(table))
    for number, name in enumerate(table):
        axis.plot(table[name], rows, label=wrapped(name), **_point(number))
    axis.set(
        xlabel=label,
        xlim=(0, None),
        yticks=rows,
        yticklabels=[wrapped(name) for name in table.index],
    )
    axis.grid(color="0.9")
    axis.invert_yaxis()
    _legend_above(figure, 4, axis)
    sns.despine(figure)
    return figure


def calibration(tables: Mapping[str, pd.DataFrame], curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Show each model's `metrics.reliability` (`tables`) beside its `metrics.risk_coverage`."""
    figure, axes = _new_figure(3.4, 1, 2)
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for number, (name, bins) in enumerate(tables.items()):
        curve, style = curves[name], _line(number)
        left.plot(bins["confidence"], bins["accuracy"], label=wrapped(name), **style)
        right.plot(curve["coverage"], curve["risk"], **style | {"marker": ""})
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="fraction of predictions kept, surest first", ylabel="fraction of those wrong")
    right.set(xlim=(0, 1), ylim=(0, None))
    _legend_above(figure, 2, left)
    sns.despine(figure)
    return figure


def bands(tables: Mapping[str, pd.DataFrame], x: str, y: str, log: bool = False) -> Figure:
    """Show the column mean of each table by its index, with a band from low to high."""
    figure, axes = _new_figure(2.8)
    axis = axes[0, 0]
    for number, (name, curve) in enumerate(tables.items()):
        axis.plot(curve.index, curve["mean"], label=name, **_line(number))
        band = {"color": COLOURS[number], "alpha": 0.2, "lw": 0}
        axis.fill_between(curve.index, curve["low"], curve["high"], **band)
    places = sorted({place for curve in tables.values() for place in curve.index})
    axis.set(xlabel=x, ylabel=y, xscale="log" if log else "linear", ylim=(0, None))
    _label_places(axis, places)
    _legend_above(figure, 4, axis)
    sns.despine(figure)
    return figure


def f1_by_class(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Show F1 of every class from each model's `metrics.classification_report`, sorted by mean."""
    frame = pd.DataFrame({name: table["f1"] for name, table in tables.items()})
    frame = frame.loc[frame.mean(axis=1).sort_values().index]
    figure, axes = _new_figure(0.155 * len(frame) + 0.8)
    axis, places = axes[0, 0], range(len(frame))
    for number, name in enumerate(frame):
        axis.plot(frame[name], places, label=wrapped(name), **_point(number))
    axis.set(xlabel="F1", xlim=(-0.03, 1.03))
    axis.set_yticks(places, [tick(name) for name in frame.index])
    axis.tick_params(labelsize=7.5)
    axis.margins(y=0.02)
    axis.grid(axis="y", color="0.9")
    axis.legend(frameon=False, loc="lower right")
    sns.despine(figure)
    return figure


def costs(table: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Show accuracy against cost, a panel per kind of cost.

    `table` has name, accuracy and costs of each model; `columns` maps up to three costs to axis
    labels.
    """
    figure, axes = _new_figure(2.0, 1, len(columns), sharey=True)
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        for number, entry in enumerate(table.to_dict("records")):
            name = wrapped(entry["name"])
            axis.plot(entry[column], entry["accuracy"], label=name, **_point(number))
        axis.set(xlabel=label, xscale="log")
        _label_places(axis, _apart(table[column]))
        axis.margins(0.25)
    axes[0, 0].set_ylabel("accuracy")
    _legend_above(figure, 3, axes[0, 0])
    sns.despine(figure)
    return figure
