"""One set of images twice: trained on with what leaks from the test split, and without."""

from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl.config import RESPLIT
from fruitveg_tl.data import audit
from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.data.resplit import validation_groups
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import new_folder

WITH, WITHOUT = "with-leaks", "without-leaks"


def with_and_without(dataset: Dataset, pairs: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Lay out two sets of images that differ in the leaks among their training images alone.

    A leak is a training image that a chain of duplicates joins to a test image. Both sets test on
    the test split as distributed, and both validate on images that are no leak, taken from
    training: the validation split as distributed may be a leak itself, and is left out. So are
    classes in which fewer than two training images would remain.

    Args:
        dataset: the images as distributed; classes may be missing from some splits.
        pairs: from `audit.duplicates`.
        folder: where to put the sets, as folders of links (Windows makes those in developer mode).

    Returns:
        `WITH` and `WITHOUT` to the folder of each.

    Raises:
        InputError: if fewer than two classes are left.
    """
    groups = audit.duplicate_groups(pairs, len(dataset.index))
    leak = np.isin(groups, groups[dataset.rows("test")])
    split = dataset.index["split"].to_numpy(str)
    kept = np.full(len(split), "", dtype="<U5")
    for label in range(len(dataset.classes)):
        own = (dataset.targets == label) & (split == "train") & ~leak
        sizes = pd.Series(groups[own]).value_counts(sort=False)
        if len(sizes) < 2:
            continue
        order = np.random.default_rng(label).permutation(sizes.index)
        kept[(dataset.targets == label) & (split != "val")] = "keep"
        kept[own & np.isin(groups, list(validation_groups(order, sizes)))] = "val"
    chosen = np.where(kept == "keep", split, kept)
    if len(set(dataset.targets[chosen != ""])) < 2:
        raise InputError(
            f"{printable(dataset.root)}: fewer than two classes keep training images that are no "
            "leaks: what these are worth cannot be measured; deal all images anew with "
            f"{RESPLIT}"
        )
    folders = {name: folder / f"{dataset.name}-{name}" for name in (WITH, WITHOUT)}
    _link(dataset, chosen, folders[WITH])
    _link(dataset, np.where(leak & (chosen == "train"), "", chosen), folders[WITHOUT])
    return folders


def _link(dataset: Dataset, split: np.ndarray, folder: Path) -> None:
    """Link each image below `folder/SPLIT/CLASS`; those whose split is empty are left out."""
    with new_folder(folder) as temporary:
        for row in np.flatnonzero(split != ""):
            file = dataset.root / dataset.index["path"][row]
            link = temporary / split[row] / dataset.index["label"][row] / f"{row:05d}{file.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
