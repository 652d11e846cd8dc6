"""Networks beside the figures published for the Grocery Store Dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.data import grocery
from fruitveg_tl.evaluation import ensemble, metrics
from fruitveg_tl.studies import Run

HERE = "here"


def beside_published(every: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Put networks trained on the fine labels beside the published figures, at both levels.

    Coarse probabilities are sums of fine ones.

    Args:
        every: name to the runs of one network, a seed each, on grocery-all's fine labels.

    Returns:
        the columns of `grocery.published`, lowest fine accuracy first; source is `HERE` for what
        was trained here: a row per network and one for their mean, each averaged over the seeds.
    """
    rows = []
    predictions = {name: [r.probabilities[FINETUNED] for r in runs] for name, runs in every.items()}
    predictions[ensemble.NAME] = ensemble.mean_probabilities(every)
    first = next(iter(every.values()))[0]
    groups = grocery.class_hierarchy(first.test)["fruit"]
    for name, seeds in predictions.items():
        fine, coarse = np.mean([_at_both_levels(first.targets, p, groups) for p in seeds], axis=0)
        told = f"LP-FT, mean over {len(seeds)} seeds" if len(seeds) > 1 else "LP-FT, one seed"
        rows.append([HERE, name, fine, coarse, told])
    published = grocery.published()
    ours = pd.DataFrame(rows, columns=published.columns)
    return pd.concat([published, ours]).sort_values("fine", ignore_index=True)


def _at_both_levels(
    targets: np.ndarray, probabilities: np.ndarray, groups: Sequence[str]
) -> tuple[float, float]:
    summed, names = metrics.sum_by_group(probabilities, groups)
    truth = np.searchsorted(names, np.asarray(groups, str)[targets])
    fine = metrics.accuracy(targets, probabilities.argmax(1))
    return fine, metrics.accuracy(truth, summed.argmax(1))
