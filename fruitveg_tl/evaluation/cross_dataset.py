"""From one set of images to another: predictions on the classes that both have."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fruitveg_tl.data.kaggle import FRUITS_VEGES_TO_GROCERY

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
    probabilities: np.ndarray,
    known: Sequence[str],
    shared: Sequence[str],
    names: LabelMap = FRUITS_VEGES_TO_GROCERY,
) -> np.ndarray:
    """Let a network choose among the shared classes alone.

    What it says of other classes is left out, and the rest scaled to sum to 1: it knows that none
    of those is shown, whichever set it was trained on.

    Args:
        probabilities: shape (n, known).
        known: the classes that it was trained on.
        shared: from `shared_classes`.
        names: see `shared_classes`.

    Returns:
        probabilities (n, shared).
    """
    columns = np.array([names.get(name, name) for name in known])
    summed = np.stack([probabilities[:, columns == name].sum(1) for name in shared], axis=1)
    # Never 0: a network sure of some other fruit still has to choose among these.
    summed = np.maximum(summed, np.finfo(np.float32).tiny)
    return summed / summed.sum(1, keepdims=True)
