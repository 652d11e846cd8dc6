"""Figures. Pure functions that return a Matplotlib figure, and one that saves it.

Every figure is readable in grey print: lines differ in style, points in shape, and the heat maps
run from light to dark.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from fruitveg_tl.backbones import Network
from fruitveg_tl.config import FIGURES_DIR, SPLITS

DPI = 110  # sharp on paper at column width, and small enough for Git
COLOURS = sns.color_palette("colorblind")
MARKERS = "osD^vP"
STYLES = ("-", "--", ":", "-.")
WIDTH = 7.5  # inches: the text width of an A4 page


def save_figure(figure: Figure, name: str) -> Path:
    """Write a figure as `figures/NAME.png`, without a time stamp, and return the file.

    256 colours of the figure's own choice make a third of the size, which notebooks in Git need.
    """
    file = FIGURES_DIR / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DPI, bbox_inches="tight")
    palette = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(file, optimize=True)
    return file


def _figure(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _wrapped(names: Sequence[str]) -> list[str]:
    return [textwrap.fill(name, 34) for name in names]


def _apart(values: Iterable[float]) -> list[float]:
    """Leave out what a logarithmic axis would write over its neighbour."""
    ticks = sorted(values)
    least = (ticks[-1] / ticks[0]) ** 0.15
    kept = ticks[:1]
    for value in ticks:
        if value / kept[-1] > least:
            kept.append(value)
    return kept


def contact_sheet(
    pixels: np.ndarray, labels: Sequence[str], columns: int = 6, blocks: int = 2
) -> Figure:
    """Show the first photographs of every class, a class per block.

    Args:
        pixels: uint8 (n, size, size, 3).
        labels: class name of each photograph.
        columns: photographs shown of each class.
        blocks: classes beside each other.
    """
    names = np.asarray(labels)
    classes = sorted(set(names))
    rows = -(-len(classes) // blocks)
    width = blocks * columns * 0.62 + 0.3
    figure = Figure(figsize=(width, rows * 0.82), layout="constrained")
    axes = figure.subplots(rows, blocks, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name in zip(axes.T.flat, classes, strict=False):
        axis.imshow(np.concatenate(pixels[names == name][:columns], axis=1))
        axis.set_title(name, fontsize=8, loc="left", pad=2)
    return figure


def class_balance(index: pd.DataFrame) -> Figure:
    """Show how many photographs each class has in each split.

    Args:
        index: of a `Dataset`.
    """
    counts = index.groupby(["label", "split"]).size().unstack(fill_value=0)
    figure, axes = _figure(0.17 * len(counts) + 1, 1, 3, sharey=True)
    for axis, split, colour in zip(axes[0], SPLITS, COLOURS, strict=False):
        bars = axis.barh(counts.index, counts[split], color=colour)
        axis.bar_label(bars, fontsize=6, padding=1)
        axis.set_title(f"{split}: {counts[split].sum()} photographs", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.15, y=0.01)
    axes[0, 0].invert_yaxis()
    sns.despine(figure)
    return figure


def distributions(values: pd.DataFrame, splits: pd.Series) -> Figure:
    """Show how each column of `values` is distributed, a line per split.

    Args:
        values: one row per photograph, e.g. from `audit.quality`.
        splits: "train", "val" or "test" of each.
    """
    rows = -(-values.shape[1] // 2)
    figure, axes = _figure(2.1 * rows, rows, 2)
    for axis, name in zip(axes.flat, values, strict=False):
        for split, colour, style in zip(SPLITS, COLOURS, STYLES, strict=False):
            sns.kdeplot(
                values.loc[(splits == split).to_numpy(), name],
                ax=axis, color=colour, linestyle=style, label=split, cut=0, warn_singular=False,
            )  # fmt: skip
        axis.set(ylabel="density", yticks=[])
    axes.flat[0].legend(frameon=False)
    sns.despine(figure)
    return figure


def pictures(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 6, scale: float = 1.0
) -> Figure:
    """Show photographs in a grid.

    Args:
        images: each (height, width, 3), uint8, or floats in 0..1.
        titles: a line or two above each.
        columns: how many beside each other.
        scale: size of the titles.
    """
    rows = max(1, -(-len(images) // columns))
    figure, axes = _figure(rows * (WIDTH / columns + 0.2), rows, columns)
    figure.get_layout_engine().set(h_pad=0.01, w_pad=0.01, hspace=0, wspace=0)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=7 * scale, pad=2)
    return figure


def heat(pixels: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Darken photographs where a heat map is low: readable in grey, unlike a colour overlay.

    Args:
        pixels: uint8 (n, size, size, 3).
        maps: (n, size, size) in 0..1.

    Returns:
        floats (n, size, size, 3) in 0..1.
    """
    return pixels / 255 * (0.15 + 0.85 * maps[..., None])


def frozen_and_trained(network: Network) -> Figure:
    """Draw a network from left to right: what stays frozen, what fine-tuning changes.

    The height of a bar is the number of parameters of a layer.
    """
    layers = [layer for layer in network.model.layers if layer.weights]
    counts = [layer.count_params() for layer in layers]
    frozen = [not layer.trainable_variables for layer in layers]
    boundary = {layer.name for layer in network.prefix.layers}
    figure, axes = _figure(2.2)
    axis = axes[0, 0]
    colours = ["0.75" if still else COLOURS[0] for still in frozen]
    axis.bar(range(len(layers)), counts, color=colours, width=1, edgecolor="white", linewidth=0.3)
    cut = sum(layer.name in boundary for layer in layers) - 0.5
    axis.axvline(cut, color="black", linestyle="--", linewidth=1)
    axis.set(
        yscale="log", xlabel="layers with parameters, input to output", ylabel="parameters",
        xlim=(-1, len(layers)),
    )  # fmt: skip
    axis.text(cut, 1, "frozen ", ha="right", va="bottom", transform=axis.get_xaxis_transform())
    axis.text(cut, 1, " fine-tuned", ha="left", va="bottom", transform=axis.get_xaxis_transform())
    sns.despine(figure)
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Show loss and accuracy of all epochs, with a mark where fine-tuning starts.

    Args:
        history: of a `results.Run`.
    """
    epochs = np.arange(1, len(history) + 1)
    starts = np.flatnonzero(history["epoch"] == 0)  # of a soup, one for each training
    figure, axes = _figure(2.6, 1, 2)
    for axis, name in zip(axes[0], ("loss", "accuracy"), strict=True):
        axis.plot(epochs, history[name], STYLES[1], color=COLOURS[1], label="training")
        axis.plot(epochs, history[f"val_{name}"], STYLES[0], color=COLOURS[0], label="validation")
        for start in starts:
            if start:
                axis.axvline(start + 0.5, color="0.4", linewidth=1)
            stage = history["stage"].iloc[start]
            if start == 0 or stage != history["stage"].iloc[start - 1]:
                above = 1.01 if start == 0 else 1.07  # a phase may be shorter than its name
                axis.text(start + 1, above, stage, fontsize=8, transform=axis.get_xaxis_transform())
        axis.set(xlabel="epoch", ylabel=name)
    axes[0, 0].legend(frameon=False)
    sns.despine(figure)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Show a confusion matrix: shares of each true class as shades, photographs as numbers.

    Args:
        counts: from `metrics.confusion`.
        classes: names of rows and columns.
    """
    side = max(4.0, min(7.0, 0.25 * len(classes) + 1.2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    sns.heatmap(
        shares, ax=axis, cmap="Greys", vmin=0, vmax=1, square=True, linewidths=0.3,
        linecolor="0.9", cbar=False, xticklabels=classes, yticklabels=classes,
        annot=np.where(counts > 0, counts.astype(str), ""), fmt="",
        annot_kws={"fontsize": max(4, 9 - len(classes) / 7)},
    )  # fmt: skip
    axis.tick_params(labelsize=max(6, 9 - len(classes) / 11))
    axis.set(xlabel="answer", ylabel="true class")
    return figure


def scores(found: pd.DataFrame) -> Figure:
    """Show scores with their intervals.

    Args:
        found: one row per network and score: name, score, value, low, high.
    """
    names, kinds = found["name"].unique(), found["score"].unique()
    figure, axes = _figure(0.38 * len(names) + 1, 1, len(kinds), sharey=True)
    for axis, kind in zip(axes[0], kinds, strict=True):
        part = found[found["score"] == kind]
        for row, (_, entry) in enumerate(part.iterrows()):
            axis.plot([entry["low"], entry["high"]], [row, row], color="0.3")
            axis.plot(entry["value"], row, MARKERS[row % len(MARKERS)], color=COLOURS[0])
        axis.set(xlabel=kind, yticks=range(len(part)), yticklabels=_wrapped(part["name"]))
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.9")
    axes[0, 0].invert_yaxis()
    sns.despine(figure)
    return figure


def calibration(tables: Mapping[str, pd.DataFrame], curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Show confidence against accuracy, and the error rate against the share of answers kept.

    Args:
        tables: model name to `calibration.reliability`.
        curves: model name to `calibration.risk_coverage`.
    """
    figure, axes = _figure(3.4, 1, 2)
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for number, name in enumerate(tables):
        style = {"color": COLOURS[number], "linestyle": STYLES[number % len(STYLES)]}
        found, curve = tables[name], curves[name]
        marker = MARKERS[number % len(MARKERS)]
        left.plot(found["confidence"], found["accuracy"], marker=marker, markersize=4, **style)
        right.plot(curve["coverage"], curve["risk"], label=_wrapped([name])[0], **style)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="share of answers kept, surest first", ylabel="share of those wrong")
    right.set(xlim=(0, 1), ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def bands(tables: Mapping[str, pd.DataFrame], x: str, y: str, log: bool = False) -> Figure:
    """Show curves, each with a band from its lowest to its highest value.

    Args:
        tables: name to a table with columns mean, low and high; its index is the place on x.
        x: label of the lower axis.
        y: label of the other.
        log: whether x grows by factors.
    """
    figure, axes = _figure(2.8)
    axis = axes[0, 0]
    for number, (name, found) in enumerate(tables.items()):
        colour = COLOURS[number]
        style = {"linestyle": STYLES[number], "marker": MARKERS[number], "markersize": 4}
        axis.plot(found.index, found["mean"], color=colour, label=name, **style)
        axis.fill_between(found.index, found["low"], found["high"], color=colour, alpha=0.2, lw=0)
    places = sorted({place for found in tables.values() for place in found.index})
    axis.set(xlabel=x, ylabel=y, xscale="log" if log else "linear", ylim=(0, None))
    axis.set_xticks(places, [f"{place:.3g}" for place in places], fontsize=8)
    axis.minorticks_off()
    axis.legend(frameon=False)
    sns.despine(figure)
    return figure


def f1_by_class(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Show F1 of every class, one shape per model, sorted by their mean.

    Args:
        tables: model name to `metrics.per_class`.
    """
    frame = pd.DataFrame({name: table["f1"] for name, table in tables.items()})
    frame = frame.loc[frame.mean(axis=1).sort_values().index]
    figure, axes = _figure(0.18 * len(frame) + 1)
    axis = axes[0, 0]
    for name, colour, marker in zip(frame, COLOURS, MARKERS, strict=False):
        axis.plot(frame[name], frame.index, marker, color=colour, label=_wrapped([name])[0])
    axis.set(xlabel="F1", xlim=(-0.03, 1.03))
    axis.tick_params(labelsize=8)
    axis.margins(y=0.02)
    axis.grid(axis="y", color="0.9")
    axis.legend(frameon=False, loc="lower right")
    sns.despine(figure)
    return figure


def costs(table: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Show accuracy against what it costs, a panel per kind of cost.

    Args:
        table: one row per model: name, accuracy and the columns below.
        columns: column of `table` to axis label.
    """
    figure, axes = _figure(2.4 * -(-len(columns) // 3), -(-len(columns) // 3), 3, sharey=True)
    for axis in axes.flat[len(columns) :]:
        axis.set_axis_off()
    for axis, (column, label) in zip(axes.flat, columns.items(), strict=False):
        for row, (_, entry) in enumerate(table.iterrows()):
            marker, colour = MARKERS[row % len(MARKERS)], COLOURS[row % len(COLOURS)]
            axis.plot(entry[column], entry["accuracy"], marker, color=colour, label=entry["name"])
        axis.set(xlabel=label, xscale="log")
        ticks = _apart(table[column])
        axis.set_xticks(ticks, [f"{value:.3g}" for value in ticks], fontsize=8)
        axis.minorticks_off()
        axis.margins(0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    labels = _wrapped(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def preprocessed(tensors: Mapping[str, np.ndarray]) -> Figure:
    """Show how the values of one photograph are distributed after each backbone's preprocessing.

    Args:
        tensors: name to array of any shape whose last axis is the three channels.
    """
    figure, axes = _figure(2.2, 1, len(tensors))
    for axis, (name, tensor) in zip(axes[0], tensors.items(), strict=True):
        for channel, style in enumerate(STYLES[:3]):
            values = keras.ops.convert_to_numpy(tensor)[..., channel].ravel()
            axis.hist(values, 40, histtype="step", linestyle=style, color=COLOURS[channel],
                      label=f"channel {channel}")  # fmt: skip
        axis.set_title(name, fontsize=9)
        axis.set(yticks=[], xlabel="value")
    axes[0, 0].legend(frameon=False, fontsize=7)
    sns.despine(figure)
    return figure
