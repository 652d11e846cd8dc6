"""A data set: a table of its images in a fixed order, with sizes and hashes.

The package identifies an image by its row. `Images` that differ only in their splits have the same
rows, so they share decoded pixels and frozen activations.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fruitveg_tl.config import PATHS, RESPLIT, SPLITS, TEST, TRAIN, VAL
from fruitveg_tl.data.images import check_header, map_files, pixel_array
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import sha256_file

Item = tuple[Path, str, str]  # file, label, split
UNUSED = ""  # the split of an unused image


@dataclass(frozen=True)
class Images:
    """A data set with splits.

    Attributes:
        name: e.g. "grocery-coarse".
        root: the folder to which the paths of the index are relative.
        index: one row per image: path (relative, with "/"), label, split (or `UNUSED`), width,
            height, mode, sha256.
        classes: all labels in use, sorted; the class index is the position in this tuple.
        asked: the fields of `config.Selection` that select these images.
        recipe: their default settings, see `config.recipe`.
        viewed: rows whose augmented views are stored; None for the training images.
    """

    name: str
    root: Path
    index: pd.DataFrame
    classes: tuple[str, ...]
    asked: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    viewed: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over content, label and split of the images in use, whatever their paths."""
        return _digest(self.index)

    @cached_property
    def content(self) -> str:
        """The digest of the set with all its training images, also for a subsample."""
        if self.viewed is None:
            return self.digest
        split = self.index["split"].to_numpy(str).copy()
        split[self.viewed] = TRAIN
        return _digest(self.index.assign(split=split))

    @cached_property
    def order(self) -> str:
        """SHA-256 over the images' contents in row order, which depends on file names."""
        return hashlib.sha256("".join(self.index["sha256"]).encode()).hexdigest()

    @cached_property
    def targets(self) -> np.ndarray:
        """Class index of every image, shape (n,), int64; meaningless for unused images."""
        return np.searchsorted(np.array(self.classes), self.index["label"].to_numpy(str))

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split's images, ascending."""
        return np.flatnonzero(self.index["split"] == split)

    @property
    def held_out(self) -> np.ndarray:
        """Rows of the validation and test images, ascending."""
        return np.sort(np.concatenate([self.rows(VAL), self.rows(TEST)]))

    def places(self, split: str) -> np.ndarray:
        """Positions of the validation or test images among `held_out`."""
        return np.searchsorted(self.held_out, self.rows(split))

    @property
    def viewed_rows(self) -> np.ndarray:
        """Rows of the images whose augmented views are stored, ascending."""
        return self.rows(TRAIN) if self.viewed is None else self.viewed

    @property
    def training_counts(self) -> list[int]:
        """Number of training images of each class."""
        return np.bincount(self.targets[self.rows(TRAIN)], minlength=len(self.classes)).tolist()

    def one_hot(self, rows: np.ndarray) -> np.ndarray:
        """Return the targets of these rows as float32, shape (n, classes)."""
        return np.eye(len(self.classes), dtype=np.float32)[self.targets[rows]]

    def split_sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {split: len(self.rows(split)) for split in SPLITS}

    def with_splits(self, split: Sequence[str], name: str, **asked: Any) -> "Images":
        """Return the same images in other splits: train, val, test or `UNUSED` for each row.

        `asked` holds further fields of `config.Selection` that select the new set, if any do.
        """
        index = self.index.assign(split=np.asarray(split, str))
        classes = tuple(sorted(set(index.loc[index["split"] != UNUSED, "label"])))
        return replace(
            self,
            name=name,
            index=index,
            classes=classes,
            asked={**self.asked, **asked} if asked else {},
            viewed=None,
        )

    def subsample(self, count: int, seed: int) -> "Images":
        """Return the set with at most `count` training images per class, drawn by `seed`."""
        train = self.rows(TRAIN)
        order = np.random.default_rng(seed).permutation(len(train))
        drawn = pd.Series(self.targets[train[order]])
        left_out = train[order[(drawn.groupby(drawn).cumcount() >= count).to_numpy()]]
        split = self.index["split"].to_numpy(str).copy()
        split[left_out] = UNUSED
        fewer = self.with_splits(split, self.name, train_images_per_class=count)
        return replace(fewer, viewed=train)

    def pixels_key(self, size: int, crop: float = 1.0) -> str:
        """Name of the decoded array, which identifies its content."""
        cropped = f"-crop{crop:g}" if crop < 1 else ""
        return f"{size}px{cropped}-{self.order[:16]}"

    def pixels_file(self, size: int, crop: float = 1.0) -> Path:
        """File of the decoded array."""
        return PATHS.cache / "pixels" / f"{self.pixels_key(size, crop)}.npy"

    def pixels(self, size: int, crop: float = 1.0) -> np.ndarray:
        """Return all images as a memory map, uint8 (n, size, size, 3); decode them only once."""
        paths = [self.root / path for path in self.index["path"]]
        return pixel_array(paths, size, self.pixels_file(size, crop), crop)


def _digest(index: pd.DataFrame) -> str:
    used = index.loc[index["split"] != UNUSED, ["split", "label", "sha256"]]
    lines = sorted("\t".join(row) for row in used.itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def index(name: str, root: Path, images: list[Item], required: tuple[str, ...]) -> Images:
    """Index the images below `root`, given in any order: read the header and the hash of each.

    Every class must have an image in each of the `required` splits. Raises InputError, and names
    each file or class that cannot be used.
    """
    if not images:
        raise InputError(f"{root}: no images found; see README, «Use your own images»")
    paths = [path for path, _, _ in images]
    if strange := [path for path in paths if not _is_text(path)]:
        lines = (f"{printable(path)}: its name is not UTF-8; rename it" for path in strange)
        raise InputError("\n".join(lines))
    headers = map_files(lambda path: (*check_header(path), sha256_file(path)), paths, "index")
    table = pd.DataFrame(images, columns=["path", "label", "split"])
    table[["width", "height", "mode", "sha256"]] = headers
    table["path"] = [path.relative_to(root).as_posix() for path in paths]
    table = table.sort_values(["split", "path"]).reset_index(drop=True)
    classes = tuple(sorted(set(table["label"])))
    _check_classes(root, table, classes, required)
    return Images(name, root, table, classes)


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_classes(
    root: Path, table: pd.DataFrame, classes: tuple[str, ...], required: tuple[str, ...]
) -> None:
    if len(classes) < 2:
        raise InputError(f"{root}: only one class, {classes[0]!r}; at least two are needed")
    counts = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    for split in required:
        if empty := [repr(label) for label in classes if counts.loc[label, split] == 0]:
            which = f"class {empty[0]} has" if len(empty) == 1 else f"{len(empty)} classes have"
            names = "" if len(empty) == 1 else f" ({', '.join(empty)})"
            raise InputError(
                f"{printable(root)}: {which} no images in {split}{names}; add some there, remove "
                f"the class from the other splits, or create new splits with {RESPLIT}"
            )
