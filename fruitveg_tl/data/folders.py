"""Images in class folders, with or without folders for the splits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from fruitveg_tl.config import SPLITS
from fruitveg_tl.data.dataset import Item
from fruitveg_tl.utils.errors import InputError

# The Kaggle set says "validation"; others say "val" or "valid".
SPLIT_FOLDERS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
# Left by operating systems and archives; anything else in a class folder must be an image.
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")


def from_folders(root: Path) -> Iterator[Item]:
    """Yield the images of a folder.

    Args:
        root: holds train, validation and test folders of class folders, or class folders alone
            (then split 70/10/20, stratified and seeded).

    Raises:
        InputError: if the folder or one of the splits is missing, or there are too few to split.
    """
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
        images = list(_labelled(root))
        yield from _stratified(root, images) if images else ()


def _stratified(root: Path, images: list[tuple[Path, str]]) -> Iterator[Item]:
    paths, labels = [p for p, _ in images], [label for _, label in images]
    try:
        rest, test = train_test_split(
            np.arange(len(paths)), test_size=0.2, stratify=labels, random_state=0
        )
        train, val = train_test_split(
            rest, test_size=0.125, stratify=[labels[i] for i in rest], random_state=0
        )
    except ValueError as error:
        raise InputError(f"{root}: too few images to split 70/10/20 ({error})") from None
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
