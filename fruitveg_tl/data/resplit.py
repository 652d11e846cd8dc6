"""New splits of the same images: with duplicates kept together, or without leaks."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.config import RESPLIT, TEST, TRAIN, VAL
from fruitveg_tl.data import audit
from fruitveg_tl.data.dataset import UNUSED, Images
from fruitveg_tl.utils.errors import InputError, printable

SIZE = 64  # pixels, for the duplicate search
FOLDS = 5
VALIDATION = 0.1  # fraction of a class's images
WITH, WITHOUT = "with-leaks", "without-leaks"


def resplit(dataset: Images, fold: int = 1) -> Images:
    """Create new splits: about 70/10/20 of each class, groups of duplicates together.

    The groups of each class form five parts of about equal size; each `fold`, 1 to 5, tests on
    another part. Over five folds every image is tested once, or more often in classes of fewer than
    five groups. Similar images that are not near duplicates may still be in two splits. Splits of
    `dataset` may lack classes. Raises InputError, and names each, if classes cannot be in both
    train and test.
    """
    groups = audit.duplicate_groups(
        audit.duplicates(dataset, dataset.pixels(SIZE)), len(dataset.index)
    )
    split = _split(dataset.targets, groups, fold)
    _refuse_empty_splits(dataset, split)
    return dataset.with_splits(split, f"{dataset.name}-resplit{fold}", resplit=int(fold))


def _split(targets: np.ndarray, groups: np.ndarray, fold: int) -> np.ndarray:
    """Return the split of every image, as text."""
    split = np.full(len(targets), TRAIN, dtype="<U5")
    # A group with several labels counts for its most frequent label.
    label_of_group = pd.Series(targets).groupby(groups).agg(lambda labels: labels.mode()[0])
    sizes = pd.Series(groups).value_counts(sort=False).sort_index()
    for label in np.unique(targets):
        own = sizes[label_of_group == label]
        parts = equal_parts(own, FOLDS, np.random.default_rng(label))
        if not parts:
            continue
        turned = parts[fold % len(parts) :] + parts[: fold % len(parts)]
        test, rest = turned[-1], [group for part in turned[:-1] for group in part]
        split[np.isin(groups, test)] = TEST
        split[np.isin(groups, list(validation_groups(rest, own)))] = VAL
    return split


def equal_parts(sizes: pd.Series, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Divide groups into at most `count` parts: the largest first, each into the smallest part.

    `sizes`, indexed by the group, counts images; `rng` breaks ties between groups of the same size.
    """
    shuffled = sizes.sample(frac=1, random_state=rng)
    parts: list[list[int]] = [[] for _ in range(min(count, len(sizes)))]
    filled = np.zeros(len(parts))
    for group, size in shuffled.sort_values(ascending=False, kind="stable").items():
        smallest = int(filled.argmin())
        parts[smallest].append(group)
        filled[smallest] += size
    return parts


def validation_groups(groups: Sequence[int], sizes: pd.Series) -> Iterator[int]:
    """Yield groups of about `VALIDATION` of a class's images, at least one, but never the last.

    `groups` are the class's candidates, in order; `sizes`, indexed by the group, counts images.
    """
    wanted, filled = VALIDATION * sizes.sum(), 0
    for group in groups[: len(groups) - 1]:
        if filled and filled + sizes[group] / 2 > wanted:
            return
        filled += sizes[group]
        yield group


def with_and_without(images: Images, pairs: pd.DataFrame) -> dict[str, Images]:
    """Return two data sets that differ only in the leaks among their training images.

    A leak is a training image that a chain of duplicates (`pairs`) joins to a test image. Both sets
    keep the published test split, drop the published validation split, which may leak, and take
    clean validation images from training. Classes without test images or with fewer than two groups
    of clean training images are dropped. Returns the images of `WITH` and of `WITHOUT`; raises
    InputError if fewer than two classes are left.
    """
    groups = audit.duplicate_groups(pairs, len(images.index))
    leak = np.isin(groups, groups[images.rows(TEST)])
    chosen = _with_leaks(images, groups, leak)
    if len(set(images.targets[chosen != UNUSED])) < 2:
        raise InputError(
            f"{printable(images.root)}: fewer than two classes keep training images that are not "
            "leaks, so the effect of leaks cannot be measured; create new splits with "
            f"{RESPLIT}"
        )
    without = np.where(leak & (chosen == TRAIN), UNUSED, chosen)
    return {
        WITH: images.with_splits(chosen, f"{images.name}-{WITH}"),
        WITHOUT: images.with_splits(without, f"{images.name}-{WITHOUT}"),
    }


def _with_leaks(images: Images, groups: np.ndarray, leak: np.ndarray) -> np.ndarray:
    """Return the split of every image, as text, with the leaks among the training images."""
    split = images.index["split"].to_numpy(str)
    chosen = np.full(len(split), UNUSED, dtype="<U5")
    for label in range(len(images.classes)):
        own = images.targets == label
        clean = own & (split == TRAIN) & ~leak
        sizes = pd.Series(groups[clean]).value_counts(sort=False)
        if len(sizes) < 2 or not (own & (split == TEST)).any():
            continue
        kept = own & (split != VAL)
        chosen[kept] = split[kept]
        order = np.random.default_rng(label).permutation(sizes.index)
        validation = list(validation_groups(order, sizes))
        chosen[clean & np.isin(groups, validation)] = VAL
    return chosen


def _refuse_empty_splits(dataset: Images, split: np.ndarray) -> None:
    counts = pd.crosstab(dataset.targets, split)
    poor = [
        f"{printable(dataset.root)}: class {label!r} cannot be split into train and test: its "
        "images are too few, or duplicates of one another; add others or remove the class"
        for number, label in enumerate(dataset.classes)
        if not all(counts.get(name, {}).get(number, 0) for name in (TRAIN, TEST))
    ]
    if poor:
        raise InputError("\n".join(poor))
    if VAL not in counts:
        raise InputError(f"{printable(dataset.root)}: too few images for a validation split")
