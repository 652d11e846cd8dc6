"""From one set of images to another: predictions on the classes that both have."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.data.kaggle import FRUITS_VEGES_TO_GROCERY
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.results import Run, load
from fruitveg_tl.training.inference import Inference
from fruitveg_tl.utils.errors import InputError

LabelMap = Mapping[str, str]


def shared_classes(
    one: Iterable[str], other: Iterable[str], names: LabelMap = FRUITS_VEGES_TO_GROCERY
) -> list[str]:
    """Return the classes that two sets share, sorted.

    Args:
        one: the classes of a set.
        other: those of another.
        names: classes of one set to those of the other; several may go to one. A class that is not
            among them stands for itself.
    """
    return sorted(
        {names.get(name, name) for name in one} & {names.get(name, name) for name in other}
    )


def on_shared_classes(
    run: Run,
    dataset: Dataset,
    shared: Sequence[str],
    names: LabelMap = FRUITS_VEGES_TO_GROCERY,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify the test images of a set with a run's network, choosing among some classes alone.

    What the network says of other classes is left out, and the rest scaled to sum to 1: it knows
    that none of those is shown, whichever set it was trained on.

    Args:
        run: a finished run whose network is on disk.
        dataset: the images to classify; may be the run's own set, for comparison.
        shared: from `shared_classes`; images of other classes are left out.
        names: see `shared_classes`.

    Returns:
        true class indices (n,) and probabilities (n, shared).

    Raises:
        InputError: if there are fewer than two classes to choose among.
    """
    if len(shared) < 2:
        raise InputError(
            f"{run.provenance['dataset']['name']} and {dataset.name} share {len(shared)} of the "
            "classes; at least two are needed"
        )
    known = np.array([names.get(name, name) for name in run.classes])
    asked = np.array([names.get(name, name) for name in dataset.classes])
    rows = dataset.rows("test")
    truth = asked[dataset.targets[rows]]
    rows, truth = rows[np.isin(truth, shared)], truth[np.isin(truth, shared)]
    pixels = dataset.pixels(run.config.size, run.config.crop)[rows]
    probabilities = Inference(run.load_model()).predict(pixels)
    summed = np.stack([probabilities[:, known == name].sum(1) for name in shared], axis=1)
    # Never 0: a network sure of some other fruit still has to choose among these.
    summed = np.maximum(summed, np.finfo(np.float32).tiny)
    return np.searchsorted(shared, truth), summed / summed.sum(1, keepdims=True)


def both_ways(runs: Mapping[str, Dataset]) -> pd.DataFrame:
    """Test each network on the test images of every set, on the classes that all of them share.

    Args:
        runs: folders of two finished runs whose networks are on disk, to the set of each.

    Returns:
        one row per network and set: trained on, tested on, classes (how many), images, accuracy,
        low, high (95 % interval).
    """
    shared = shared_classes(*(dataset.classes for dataset in runs.values()))
    rows = []
    for trained in map(load, runs):
        for tested in runs.values():
            targets, probabilities = on_shared_classes(trained, tested, shared)
            accuracy = metrics.accuracy(targets, probabilities.argmax(1))
            interval = metrics.wilson_interval(accuracy, len(targets))
            on = trained.provenance["dataset"]["name"]
            rows.append([on, tested.name, len(shared), len(targets), accuracy, *interval])
    columns = ["trained on", "tested on", "classes", "images", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
