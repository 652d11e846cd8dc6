"""What leaked test images are worth to a network that was trained on them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.evaluation.significance import correct_fraction, paired_bootstrap
from fruitveg_tl.studies import Run

ALL, LEAKED, CLEAN = "all", "leaked", "clean"


def leak_effect(taught: Sequence[Run], spared: Sequence[Run], leaked: np.ndarray) -> pd.DataFrame:
    """Compare networks trained with leaks and without, on the same test images.

    Paired bootstrap over the images, each of which counts with the fraction of the runs that
    classify it correctly.

    Args:
        taught: fine-tuned with what leaks from the test split, e.g. one run per seed.
        spared: fine-tuned without.
        leaked: does each test image leak? Shape (n,).

    Returns:
        a row for `ALL` test images, the `LEAKED` and the `CLEAN` ones, where there are any of
        them: images, with leaks and without (accuracies), difference, low and high (95 % interval).
    """
    before, after = (correct_fraction(runs, FINETUNED) for runs in (taught, spared))
    rows = {}
    for name, part in {ALL: np.full(len(leaked), True), LEAKED: leaked, CLEAN: ~leaked}.items():
        if part.any():
            gap = (before - after)[part]
            interval = paired_bootstrap(gap).confidence_interval
            means = before[part].mean(), after[part].mean(), gap.mean()
            rows[name] = [part.sum(), *means, interval.low, interval.high]
    columns = ["images", "with leaks", "without", "difference", "low", "high"]
    found = pd.DataFrame(rows, index=columns).T.rename_axis("test images")
    return found.astype({"images": int})
