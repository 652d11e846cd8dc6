"""Images that look unlike their label, to networks that were not trained on them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.evaluation import ensemble
from fruitveg_tl.studies import Run


def least_likely_labels(every: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Order images by the probability that networks give their label, the lowest first.

    What is at the top is hard, mislabelled, or no image of any class. The measure is the
    self-confidence of confident learning (Northcutt et al. 2021): only a network that has not been
    trained on an image may judge it, so every fold judges its own test images.

    Args:
        every: name to the runs of one network, a fold each; the folds in the same order.

    Returns:
        one row per test image of a fold: path, label, predicted (a class), probability (of the
        label, averaged over the networks, 0..1).
    """
    folds = next(iter(every.values()))
    judged = [
        run.test.assign(
            predicted=np.array(run.classes)[mean.argmax(1)],
            probability=mean[np.arange(len(mean)), run.targets],
        )
        for run, mean in zip(folds, ensemble.mean_probabilities(every), strict=True)
    ]
    return pd.concat(judged).sort_values("probability", kind="stable", ignore_index=True)
