"""Accuracy by the number of training images of each class."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fruitveg_tl.config import STAGES
from fruitveg_tl.studies import Run

COUNTS = (1, 2, 5, 10, 20)  # training images of each class that are asked about


def images_per_class(run: Run) -> float:
    """Return how many training images a class had on average."""
    return run.counts["train"] / len(run.classes)


def _labels(run: Run) -> float:
    asked = run.row["images per class"]
    return asked if pd.notna(asked) else images_per_class(run)


def label_curves(runs: Iterable[Run]) -> dict[str, pd.DataFrame]:
    """Return the test accuracy by the number of training images of each class.

    Args:
        runs: of one network, with `train_images_per_class` or all images, a seed each.

    Returns:
        each stage that the runs have to mean, low and high over the seeds, 0..1; the index is the
        number of images of a class, rising.
    """
    scored = pd.DataFrame(
        [
            [stage, _labels(run), scores["accuracy"]]
            for run in runs
            for stage, scores in run.scores.items()
        ],
        columns=["stage", "images per class", "accuracy"],
    )
    columns = {"mean": np.mean, "low": np.min, "high": np.max}
    curves = scored.groupby(["stage", "images per class"])["accuracy"].agg(**columns)
    return {stage: curves.loc[stage] for stage in STAGES if stage in curves.index}
