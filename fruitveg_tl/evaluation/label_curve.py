"""Accuracy by the number of training images of each class."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.results import Run


def images_per_class(run: Run) -> float:
    """Return how many training images a class had on average."""
    return run.provenance["dataset"]["images"]["train"] / len(run.classes)


def label_curve(taught: Mapping[float, Sequence[Run]], stage: str) -> pd.DataFrame:
    """Return the test accuracy by the number of training images of each class.

    Args:
        taught: that number to the runs with so many, a seed each.
        stage: which predictions count.

    Returns:
        mean, low and high over the seeds, 0..1; the index is the number, rising.
    """
    scored = {n: [run.scores[stage]["accuracy"] for run in runs] for n, runs in taught.items()}
    columns = {"mean": np.mean, "low": np.min, "high": np.max}
    curve = pd.DataFrame(
        {name: {n: f(v) for n, v in scored.items()} for name, f in columns.items()}
    )
    return curve.rename_axis("images per class").sort_index()
