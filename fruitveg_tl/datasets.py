"""Photographs from many places, brought into one index.

A source yields (path, label, split) for every photograph; `load` turns that into a `Dataset`: a
table in a fixed order with sizes and hashes, and one hash for the whole set.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from fruitveg_tl import download, sample
from fruitveg_tl.config import CACHE_DIR, DATA_DIR, SPLITS
from fruitveg_tl.errors import InputError, named
from fruitveg_tl.images import check_header, map_files, pixel_array
from fruitveg_tl.storage import sha256_file

Photograph = tuple[Path, str, str]  # file, label, split


@dataclass(frozen=True)
class Dataset:
    """One set of photographs.

    Attributes:
        name: e.g. "grocery-coarse".
        root: the folder that the paths of the index start from.
        index: one row per photograph, sorted by split and path: path (relative, with "/"), label,
            split, width, height, mode, sha256.
        classes: all labels, sorted: position in this tuple is the class index everywhere.
    """

    name: str
    root: Path
    index: pd.DataFrame
    classes: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every photograph's content, label and split; free of paths and order."""
        columns = self.index[["split", "label", "sha256"]]
        lines = sorted("\t".join(row) for row in columns.itertuples(index=False))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def labels(self) -> np.ndarray:
        """Class index of every photograph, shape (n,), int64."""
        return np.searchsorted(np.array(self.classes), self.index["label"].to_numpy(str))

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's photographs in the index."""
        return np.flatnonzero(self.index["split"] == split)

    def split_sizes(self) -> dict[str, int]:
        """Number of photographs in each split."""
        return {split: len(self.rows(split)) for split in SPLITS}

    def pixels_key(self, size: int, crop: float = 1.0) -> str:
        """Name of the decoded array: what its content depends on, in the order of the rows."""
        order = hashlib.sha256("".join(self.index["sha256"]).encode()).hexdigest()
        cropped = f"-crop{crop:g}" if crop < 1 else ""
        return f"{self.name}-{size}px{cropped}-{order[:16]}"

    def pixels(self, size: int, crop: float = 1.0) -> np.ndarray:
        """Decode (once) and map all photographs: uint8 (n, size, size, 3) in index order."""
        paths = [self.root / path for path in self.index["path"]]
        file = CACHE_DIR / "pixels" / f"{self.pixels_key(size, crop)}.npy"
        return pixel_array(paths, size, file, crop)


def load(name: str, labels: str = "coarse", data: str | os.PathLike | None = None) -> Dataset:
    """Find a dataset, fetching or generating it if needed, and index it.

    Args:
        name: "sample", "grocery" (fruit and vegetables), "grocery-all" (packages too, as in the
            published tables), "fruits-veges", or the path of a folder with either
            train/validation/test folders of class folders, or class folders alone (then split
            70/10/20, stratified and seeded).
        labels: "coarse" or "fine", for grocery only.
        data: a copy already on disk in the upstream layout; default: `FRUITVEG_DATA`.

    Raises:
        InputError: naming the file, folder, class or name that cannot be used.
    """
    data = data or os.environ.get("FRUITVEG_DATA")
    if labels not in ("coarse", "fine"):
        raise InputError(f"unknown labels {labels!r}; choose coarse or fine")
    if name in DATASETS:
        root, source = DATASETS[name](Path(data) if data else None, labels)
        title = f"{name}-{labels}" if name in GROCERY else name
    elif Path(name).is_dir():
        root, source, title = Path(name), _from_folders(Path(name)), Path(name).resolve().name
    else:
        known = ", ".join(DATASETS)
        raise InputError(f"unknown dataset {name!r}; choose one of {known}, or give a folder")
    # Upstream's own validation split of grocery lacks four classes; that split is kept as it is.
    required = ("train", "test") if name in GROCERY else SPLITS
    return _index(title, root, list(source), required)


def levels(dataset: Dataset) -> pd.DataFrame:
    """Return what the classes of grocery belong to, narrow groups first.

    Returns:
        one row per class, in their order: fruit (e.g. Apple, also of a vegetable) and kind (Fruit,
        Vegetables or Packages), from the folders of the photographs.
    """
    folders = dataset.index["path"].str.split("/", expand=True)
    found = pd.DataFrame({"fruit": folders[2], "kind": folders[1], "class": dataset.index["label"]})
    return found.drop_duplicates("class").set_index("class").loc[list(dataset.classes)]


def _index(
    name: str, root: Path, photographs: list[Photograph], required: tuple[str, ...]
) -> Dataset:
    if not photographs:
        raise InputError(f"{root}: no photographs found; see README, «Use your own photographs»")
    paths = [path for path, _, _ in photographs]
    if strange := [path for path in paths if not _is_text(path)]:
        lines = (f"{named(path)}: its name is not UTF-8; rename it" for path in strange)
        raise InputError("\n".join(lines))
    headers = map_files(lambda path: (*check_header(path), sha256_file(path)), paths, "index")
    index = pd.DataFrame(photographs, columns=["path", "label", "split"])
    index[["width", "height", "mode", "sha256"]] = headers
    index["path"] = [path.relative_to(root).as_posix() for path in paths]
    index = index.sort_values(["split", "path"]).reset_index(drop=True)
    classes = tuple(sorted(set(index["label"])))
    _check_classes(root, index, classes, required)
    return Dataset(name, root, index, classes)


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_classes(
    root: Path, index: pd.DataFrame, classes: tuple[str, ...], required: tuple[str, ...]
) -> None:
    if len(classes) < 2:
        raise InputError(f"{root}: only one class, {classes[0]!r}; at least two are needed")
    counts = pd.crosstab(index["label"], index["split"]).reindex(columns=SPLITS, fill_value=0)
    missing = [
        f"{named(root)}: class {label!r} has no photographs in {split}; "
        "add some there or remove the class from the other splits"
        for label in classes
        for split in required
        if counts.loc[label, split] == 0
    ]
    if missing:
        raise InputError("\n".join(missing))


# --- sources -----------------------------------------------------------------------------------


def _sample(data: Path | None, labels: str) -> tuple[Path, Iterator[Photograph]]:
    root = sample.generate(DATA_DIR / "sample")
    return root, _from_folders(root)


def _fruits_veges(data: Path | None, labels: str) -> tuple[Path, Iterator[Photograph]]:
    root = data or download.fruits_veges()
    return root, _from_folders(root)


def _grocery(
    data: Path | None, labels: str, kinds: tuple[str, ...] = ("Fruit", "Vegetables")
) -> tuple[Path, Iterator[Photograph]]:
    root = data or download.grocery(DATA_DIR / "grocery")
    root = root / "dataset" if (root / "dataset").is_dir() else root
    if not (root / "classes.csv").is_file():
        raise InputError(
            f"{root}: no classes.csv here; --data or FRUITVEG_DATA must be the folder of the "
            "Grocery Store Dataset that holds dataset/"
        )
    return root, _from_lists(root, labels, kinds)


def _grocery_all(data: Path | None, labels: str) -> tuple[Path, Iterator[Photograph]]:
    return _grocery(data, labels, ("Fruit", "Vegetables", "Packages"))


def _from_lists(root: Path, labels: str, kinds: tuple[str, ...]) -> Iterator[Photograph]:
    """Read the Grocery Store Dataset's own split files."""
    with (root / "classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    names = {int(number): {"fine": fine, "coarse": coarse} for fine, number, coarse, *_ in rows}
    for split in SPLITS:
        for line in (root / f"{split}.txt").read_text().splitlines():
            path, fine, _ = (field.strip() for field in line.split(","))
            if path.split("/")[1] in kinds:
                yield root / path, names[int(fine)][labels], split


# The Kaggle set says "validation"; others say "val" or "valid".
SPLIT_FOLDERS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
# Left by operating systems and archives; anything else in a class folder must be a photograph.
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")


def _from_folders(root: Path) -> Iterator[Photograph]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; correct --data or FRUITVEG_DATA")
    splits = {SPLIT_FOLDERS.get(folder.name.lower()): folder for folder in _folders(root)}
    if "train" in splits:
        if missing := [split for split in SPLITS if split not in splits]:
            raise InputError(f"{root}: there is a train folder but none for {', '.join(missing)}")
        for split in SPLITS:
            for path, label in _labelled(splits[split]):
                yield path, label, split
    else:
        photographs = list(_labelled(root))
        yield from _stratified(root, photographs) if photographs else ()


def _stratified(root: Path, photographs: list[tuple[Path, str]]) -> Iterator[Photograph]:
    paths, labels = [p for p, _ in photographs], [label for _, label in photographs]
    try:
        rest, test = train_test_split(
            np.arange(len(paths)), test_size=0.2, stratify=labels, random_state=0
        )
        train, val = train_test_split(
            rest, test_size=0.125, stratify=[labels[i] for i in rest], random_state=0
        )
    except ValueError as error:
        raise InputError(f"{root}: too few photographs to split 70/10/20 ({error})") from None
    for split, rows in zip(SPLITS, (train, val, test), strict=True):
        for row in rows:
            yield paths[row], labels[row], split


def _labelled(folder: Path) -> Iterator[tuple[Path, str]]:
    for class_folder in _folders(folder):
        for path in sorted(class_folder.rglob("*")):
            # A link that leads nowhere is no folder either, and is named when it is read.
            if not path.is_dir() and not path.name.startswith(".") and path.name not in JUNK:
                yield path, class_folder.name


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in JUNK
    )


GROCERY = ("grocery", "grocery-all")
DATASETS: dict[str, Callable[[Path | None, str], tuple[Path, Iterator[Photograph]]]] = {
    "sample": _sample,
    "grocery": _grocery,
    "grocery-all": _grocery_all,
    "fruits-veges": _fruits_veges,
}
