"""The same images dealt anew to train, val and test, so that no duplicates are torn apart."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.data import audit
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.utils.errors import InputError, printable

SIZE = 64  # pixels at which duplicates are looked for, whatever the networks are given
FOLDS = 5
VALIDATION = 0.1  # fraction of a class's images


def resplit(dataset: Images, fold: int = 1) -> Images:
    """Deal all images anew: about 70/10/20 of each class, groups of duplicates together.

    The groups of a class are dealt to five parts of about equal size; each fold tests on another
    of them. So over the five folds every image is tested once; of a class with fewer than five
    groups, some more than once. Images taken one after the other that are no near duplicates may
    still be parted: a split by shop or day, where the source has one, is harder.

    Args:
        dataset: the images as distributed; splits and classes may be missing from one another.
        fold: 1 to `FOLDS`.

    Raises:
        InputError: naming each class that cannot stand in train and in test.
    """
    groups = audit.duplicate_groups(
        audit.duplicates(dataset, dataset.pixels(SIZE)), len(dataset.index)
    )
    split = _deal(dataset.targets, groups, fold)
    _refuse_empty_splits(dataset, split)
    return dataset.with_splits(split, f"{dataset.name}-resplit{fold}", resplit=int(fold))


def _deal(targets: np.ndarray, groups: np.ndarray, fold: int) -> np.ndarray:
    """Return the split of every image, as text."""
    split = np.full(len(targets), "train", dtype="<U5")
    # A group of images under several labels is dealt with the label that most of them have.
    label_of_group = pd.Series(targets).groupby(groups).agg(lambda labels: labels.mode()[0])
    sizes = pd.Series(groups).value_counts(sort=False).sort_index()
    for label in np.unique(targets):
        own = sizes[label_of_group == label]
        parts = equal_parts(own, FOLDS, np.random.default_rng(label))
        if not parts:
            continue
        turned = parts[fold % len(parts) :] + parts[: fold % len(parts)]
        test, rest = turned[-1], [group for part in turned[:-1] for group in part]
        split[np.isin(groups, test)] = "test"
        split[np.isin(groups, list(validation_groups(rest, own)))] = "val"
    return split


def equal_parts(sizes: pd.Series, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal groups to at most `count` parts: the largest first, each to the smallest part.

    Args:
        sizes: images of each group, indexed by the group.
        count: how many parts; fewer where there are fewer groups.
        rng: decides between groups of one size.
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

    Args:
        groups: of one class, to choose from, in order.
        sizes: images of each group of the class, indexed by the group.
    """
    wanted, filled = VALIDATION * sizes.sum(), 0
    for group in groups[: len(groups) - 1]:
        if filled and filled + sizes[group] / 2 > wanted:
            return
        filled += sizes[group]
        yield group


def _refuse_empty_splits(dataset: Images, split: np.ndarray) -> None:
    counts = pd.crosstab(dataset.targets, split)
    poor = [
        f"{printable(dataset.root)}: class {label!r} cannot be dealt to train and test: its images "
        "are too few, or duplicates of one another; add others or remove the class"
        for number, label in enumerate(dataset.classes)
        if not all(counts.get(name, {}).get(number, 0) for name in ("train", "test"))
    ]
    if poor:
        raise InputError("\n".join(poor))
    if "val" not in counts:
        raise InputError(f"{printable(dataset.root)}: too few images for a validation split")
