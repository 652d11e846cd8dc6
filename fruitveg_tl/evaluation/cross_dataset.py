"""Evaluation on another data set: predictions on the shared classes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fruitveg_tl.data.kaggle import FRUITS_VEGES_TO_GROCERY

LabelMap = Mapping[str, str]  # several may map to one; absent classes keep their names


def shared_classes(
    one: Iterable[str], other: Iterable[str], names: LabelMap = FRUITS_VEGES_TO_GROCERY
) -> list[str]:
    """Return the sorted classes that two sets share; `names` maps names of one to the other's."""
    return sorted(
        {names.get(name, name) for name in one} & {names.get(name, name) for name in other}
    )


def on_shared_classes(
    probabilities: np.ndarray,
    known: Sequence[str],
    shared: Sequence[str],
    names: LabelMap = FRUITS_VEGES_TO_GROCERY,
) -> np.ndarray:
    """Return probabilities (n, known) for the shared classes only, scaled to sum to 1."""
    columns = np.array([names.get(name, name) for name in known])
    summed = np.stack([probabilities[:, columns == name].sum(1) for name in shared], axis=1)
    # Never all 0, even if the network is certain of another class.
    summed = np.maximum(summed, np.finfo(np.float32).tiny)
    return summed / summed.sum(1, keepdims=True)
