"""Several networks as one: the mean of their probabilities."""

from collections.abc import Mapping, Sequence

import numpy as np

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.studies import Run

NAME = "mean of the probabilities"


def mean_probabilities(every: Mapping[str, Sequence[Run]]) -> list[np.ndarray]:
    """Average the fine-tuned networks' probabilities for the test images, seed by seed.

    Args:
        every: name to the runs of one network, a seed or a fold each, in the same order; those of
            one place of the same test images.

    Returns:
        an array (n, classes) for each seed.
    """
    seeds = zip(*every.values(), strict=True)
    return [np.mean([run.probabilities[FINETUNED] for run in runs], axis=0) for runs in seeds]
