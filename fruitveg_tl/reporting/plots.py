"""Figures of networks and their results: pure functions that return a Matplotlib figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fruitveg_tl.reporting.style import COLOURS, MARKERS, STYLES, new_figure, tick, wrapped

if TYPE_CHECKING:
    import keras

LEAST_SHOWN = 0.02  # of a class's images, in a confusion matrix


def _apart(values: Iterable[float]) -> list[float]:
    """Leave out what a logarithmic axis would write over its neighbour."""
    ticks = sorted(values)
    least = (ticks[-1] / ticks[0]) ** 0.15
    kept = ticks[:1]
    for value in ticks:
        if value / kept[-1] > least:
            kept.append(value)
    return kept


def frozen_and_trained(
    model: "keras.Model", frozen: "keras.Model", norms: Sequence[str] = ()
) -> Figure:
    """Draw a network from left to right: what stays frozen, what fine-tuning changes.

    The height of a bar is the number of parameters of a layer.

    Args:
        model: the whole network.
        frozen: its part in front of the boundary.
        norms: names of further layers that are never trained: BatchNorm.
    """
    layers = [layer for layer in model.layers if layer.weights]
    counts = [layer.count_params() for layer in layers]
    boundary = {layer.name for layer in frozen.layers}
    never = boundary.union(norms)
    figure, axes = new_figure(1.45)
    axis = axes[0, 0]
    colours = ["0.75" if layer.name in never else COLOURS[0] for layer in layers]
    axis.bar(range(len(layers)), counts, color=colours, width=1, edgecolor="white", linewidth=0.3)
    cut = sum(layer.name in boundary for layer in layers) - 0.5
    axis.axvline(cut, color="black", linestyle="--", linewidth=1)
    axis.set(
        yscale="log", xlabel="layers with parameters, input to output", ylabel="parameters",
        xlim=(-1, len(layers)),
    )  # fmt: skip
    axis.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axis.text(cut, 1, "frozen ", ha="right", va="bottom", transform=axis.get_xaxis_transform())
    axis.text(cut, 1, " fine-tuned", ha="left", va="bottom", transform=axis.get_xaxis_transform())
    sns.despine(figure)
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Show loss and accuracy of all epochs, with a mark where fine-tuning starts.

    Args:
        history: of a `studies.Run`.
    """
    epochs = np.arange(1, len(history) + 1)
    starts = np.flatnonzero(history["epoch"] == 0)
    figure, axes = new_figure(2.3, 1, 2)
    for axis, name in zip(axes[0], ("loss", "accuracy"), strict=True):
        axis.plot(epochs, history[name], STYLES[1], color=COLOURS[1], label="training")
        axis.plot(epochs, history[f"val_{name}"], STYLES[0], color=COLOURS[0], label="validation")
        for above, start in zip((1.01, 1.07), starts, strict=False):
            if start:
                axis.axvline(start + 0.5, color="0.4", linewidth=1)
            # A phase may be shorter than its name.
            place = {"fontsize": 8, "transform": axis.get_xaxis_transform()}
            axis.text(start + 1, above, history["stage"].iloc[start], **place)
        axis.set(xlabel="epoch", ylabel=name)
    axes[0, 0].legend(frameon=False)
    sns.despine(figure)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Show a confusion matrix: fractions of each true class as shades, images as numbers.

    Numbers below `LEAST_SHOWN` of their class are left out: shades tell that much.

    Args:
        counts: from `metrics.confusion`.
        classes: names of rows and columns.
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
    """Show scores with their intervals.

    Args:
        intervals: one row per network and score: name, score, value, low, high.
    """
    names, scores_shown = intervals["name"].unique(), intervals["score"].unique()
    figure, axes = new_figure(0.24 * len(names) + 0.8, 1, len(scores_shown), sharey=True)
    for axis, score in zip(axes[0], scores_shown, strict=True):
        part = intervals[intervals["score"] == score]
        for row, (_, entry) in enumerate(part.iterrows()):
            axis.plot([entry["low"], entry["high"]], [row, row], color="0.3")
            axis.plot(entry["value"], row, "o", color=COLOURS[0])
        axis.set(xlabel=score, yticks=range(len(part)), yticklabels=wrapped(part["name"]))
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.9")
    axes[0, 0].invert_yaxis()
    sns.despine(figure)
    return figure


def dots(table: pd.DataFrame, label: str) -> Figure:
    """Show a table of numbers, a line per row, a kind of mark per column.

    Args:
        table: numbers; what is missing is left out.
        label: of the axis.
    """
    figure, axes = new_figure(0.22 * len(table) + 0.9)
    axis = axes[0, 0]
    rows = range(len(table))
    for column, name in enumerate(table):
        marker, colour = MARKERS[column % len(MARKERS)], COLOURS[column % len(COLOURS)]
        axis.plot(table[name], rows, marker, color=colour, label=wrapped([name])[0])
    axis.set(xlabel=label, xlim=(0, None), yticks=rows, yticklabels=wrapped(table.index))
    axis.grid(color="0.9")
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def calibration(tables: Mapping[str, pd.DataFrame], curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Show confidence against accuracy, and the error rate against the predictions kept.

    Args:
        tables: model name to `calibration.reliability`.
        curves: model name to `calibration.risk_coverage`.
    """
    figure, axes = new_figure(3.4, 1, 2)
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for number, name in enumerate(tables):
        style = {"color": COLOURS[number], "linestyle": STYLES[number % len(STYLES)]}
        bins, curve = tables[name], curves[name]
        marker = MARKERS[number % len(MARKERS)]
        left.plot(bins["confidence"], bins["accuracy"], marker=marker, markersize=4, **style)
        right.plot(curve["coverage"], curve["risk"], label=wrapped([name])[0], **style)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="fraction of predictions kept, surest first", ylabel="fraction of those wrong")
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
    figure, axes = new_figure(2.8)
    axis = axes[0, 0]
    for number, (name, curve) in enumerate(tables.items()):
        colour = COLOURS[number]
        style = {"linestyle": STYLES[number], "marker": MARKERS[number], "markersize": 4}
        axis.plot(curve.index, curve["mean"], color=colour, label=name, **style)
        axis.fill_between(curve.index, curve["low"], curve["high"], color=colour, alpha=0.2, lw=0)
    places = sorted({place for curve in tables.values() for place in curve.index})
    axis.set(xlabel=x, ylabel=y, xscale="log" if log else "linear", ylim=(0, None))
    axis.set_xticks(places, [f"{place:.3g}" for place in places], fontsize=8)
    axis.minorticks_off()
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def f1_by_class(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Show F1 of every class, one shape per model, sorted by their mean.

    Args:
        tables: model name to `metrics.classification_report`.
    """
    frame = pd.DataFrame({name: table["f1"] for name, table in tables.items()})
    frame = frame.loc[frame.mean(axis=1).sort_values().index]
    figure, axes = new_figure(0.155 * len(frame) + 0.8)
    axis, places = axes[0, 0], range(len(frame))
    for name, colour, marker in zip(frame, COLOURS, MARKERS, strict=False):
        axis.plot(frame[name], places, marker, color=colour, label=wrapped([name])[0])
    axis.set(xlabel="F1", xlim=(-0.03, 1.03))
    axis.set_yticks(places, [tick(name) for name in frame.index])
    axis.tick_params(labelsize=7.5)
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
    figure, axes = new_figure(2.0 * -(-len(columns) // 3), -(-len(columns) // 3), 3, sharey=True)
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
    labels = wrapped(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure
