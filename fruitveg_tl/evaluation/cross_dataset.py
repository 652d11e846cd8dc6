"""From one set of images to another: predictions on the classes that both have."""

import numpy as np

from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.data.kaggle import FRUITS_VEGES_TO_GROCERY
from fruitveg_tl.results import Run
from fruitveg_tl.training.inference import Inference
from fruitveg_tl.utils.errors import InputError


def on_shared_classes(
    run: Run, dataset: Dataset, names: dict[str, str] = FRUITS_VEGES_TO_GROCERY
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Classify another set's test images with a run's network, on the classes both sets share.

    What the network says of other classes is left out, and the rest scaled to sum to 1: it knows
    that none of those is shown, whichever set it was trained on.

    Args:
        run: a finished run whose network is on disk.
        dataset: the images to classify; may be the run's own set, for comparison.
        names: classes of one set to those of the other; several may go to one. A class that is not
            among them stands for itself.

    Returns:
        true class indices (n,), probabilities (n, shared), the shared classes, sorted.

    Raises:
        InputError: if the sets share fewer than two classes.
    """
    known = np.array([names.get(name, name) for name in run.classes])
    asked = np.array([names.get(name, name) for name in dataset.classes])
    shared = sorted({*names.values()} & {*known} & {*asked})
    if len(shared) < 2:
        raise InputError(
            f"{run.provenance['dataset']['name']} and {dataset.name} share {len(shared)} of the "
            "classes in the label map; at least two are needed"
        )
    rows = dataset.rows("test")
    truth = asked[dataset.targets[rows]]
    rows, truth = rows[np.isin(truth, shared)], truth[np.isin(truth, shared)]
    pixels = dataset.pixels(run.config.size, run.config.crop)[rows]
    probabilities = Inference(run.load_model()).predict(pixels)
    summed = np.stack([probabilities[:, known == name].sum(1) for name in shared], axis=1)
    # Never 0: a network sure of some other fruit still has to choose among these.
    summed = np.maximum(summed, np.finfo(np.float32).tiny)
    return np.searchsorted(shared, truth), summed / summed.sum(1, keepdims=True), shared
