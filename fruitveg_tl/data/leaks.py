"""One set of images twice: trained on with what leaks from the test split, and without."""

import numpy as np
import pandas as pd

from fruitveg_tl.config import RESPLIT
from fruitveg_tl.data import audit
from fruitveg_tl.data.dataset import UNUSED, Images
from fruitveg_tl.data.resplit import validation_groups
from fruitveg_tl.utils.errors import InputError, printable

WITH, WITHOUT = "with-leaks", "without-leaks"


def with_and_without(images: Images, pairs: pd.DataFrame) -> dict[str, Images]:
    """Return two sets that differ in the leaks among their training images alone.

    A leak is a training image that a chain of duplicates joins to a test image. Both sets test on
    the test split as distributed, and both validate on images that are no leak, taken from
    training: the validation split as distributed may be a leak itself, and is left out. So are
    classes without test images, or in which fewer than two training images would remain.

    Args:
        images: as distributed; classes may be missing from some splits.
        pairs: from `audit.duplicates`.

    Returns:
        `WITH` and `WITHOUT` to the images of each.

    Raises:
        InputError: if fewer than two classes are left.
    """
    groups = audit.duplicate_groups(pairs, len(images.index))
    leak = np.isin(groups, groups[images.rows("test")])
    split = images.index["split"].to_numpy(str)
    chosen = np.full(len(split), UNUSED, dtype="<U5")
    for label in range(len(images.classes)):
        own = images.targets == label
        clean = own & (split == "train") & ~leak
        sizes = pd.Series(groups[clean]).value_counts(sort=False)
        if len(sizes) < 2 or not (own & (split == "test")).any():
            continue
        kept = own & (split != "val")
        chosen[kept] = split[kept]
        order = np.random.default_rng(label).permutation(sizes.index)
        chosen[clean & np.isin(groups, list(validation_groups(order, sizes)))] = "val"
    if len(set(images.targets[chosen != UNUSED])) < 2:
        raise InputError(
            f"{printable(images.root)}: fewer than two classes keep training images that are no "
            "leaks: what these are worth cannot be measured; deal all images anew with "
            f"{RESPLIT}"
        )
    without = np.where(leak & (chosen == "train"), UNUSED, chosen)
    return {
        name: images.with_splits(part, f"{images.name}-{name}")
        for name, part in ((WITH, chosen), (WITHOUT, without))
    }
