"""Images in class folders, with or without folders for the splits."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from fruitveg_tl.config import RESPLIT, SPLITS
from fruitveg_tl.data.dataset import Item
from fruitveg_tl.data.images import IMAGE_SUFFIXES
from fruitveg_tl.utils.errors import InputError, printable

# The Kaggle set says "validation"; others say "val", "Training" or "seg_train".
SPLIT_WORDS = {
    folder: split
    for split, folders in {
        "train": ("train", "training"),
        "val": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing"),
    }.items()
    for folder in folders
}
# Left by operating systems, archives and storage servers, besides all names with a dot in front.
JUNK = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin",
     "system volume information", "lost+found")
)  # fmt: skip


def from_folders(root: Path, resplit: bool = False) -> Iterator[Item]:
    """Yield the images of a folder.

    Args:
        root: holds train, validation and test folders of class folders, or class folders alone
            (then split 70/10/20, stratified and seeded). Other common names of the splits will do,
            in any case, also as one of a name's words. What is hidden, and what systems leave
            behind (`JUNK`), is passed over.
        resplit: the images will be dealt anew, so that splits may be missing.

    Raises:
        InputError: if the folder or one of the splits is missing, there are too few to split, or
            something lies where it would have to be guessed what it is.
    """
    if not root.is_dir():
        raise InputError(f"{printable(root)}: no such folder; correct --data or FRUITVEG_DATA")
    folders = _folders(root)
    splits = _split_folders(root, folders)
    if splits:
        if not resplit and (missing := [split for split in SPLITS if split not in splits]):
            raise InputError(
                f"{printable(root)}: no folder for {', '.join(missing)} beside "
                f"{', '.join(printable(folder.name) for folder in splits.values())}; add it, or "
                f"deal all images anew with {RESPLIT}"
            )
        for split, folder in splits.items():
            for path, label in _labelled(folder):
                yield path, label, split
        return
    for folder in folders:
        _refuse_data_sets(folder)
    images = list(_labelled(root))
    if resplit:
        yield from ((path, label, "train") for path, label in images)
    elif images:
        yield from _stratified(root, images)


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Return the folder of each split; empty if these are class folders."""
    found = [(x, split) for x in folders if (split := SPLIT_WORDS.get(x.name.lower()))]
    if not found:  # "seg_train" and "test set" are splits only where no folder is anything else
        worded = [(x, split) for x in folders if (split := _split_among_words(x.name))]
        found = worded if len(worded) == len(folders) > 1 else []
    splits = {split: folder for folder, split in found}
    # A class may be called "Test"; one of two splits at least is train.
    if "train" not in splits and len(splits) < 2:
        return {}
    if twice := [(x, splits[split]) for x, split in found if splits[split] != x]:
        names = "; ".join(f"{printable(a.name)} and {printable(b.name)}" for a, b in twice)
        raise InputError(f"{printable(root)}: {names}: two folders of one split; keep one")
    if strange := [folder for folder in folders if folder not in splits.values()]:
        names = ", ".join(printable(folder.name) for folder in strange)
        raise InputError(
            f"{printable(root)}: beside the splits, what is {names}? Move it elsewhere"
        )
    _refuse_images(root)
    return splits


def _split_among_words(name: str) -> str | None:
    """Return the split that a name of several words names, e.g. "test" for "Test_images"."""
    words = re.split(r"[^a-z]+", name.lower())
    named = {split for word in words if (split := SPLIT_WORDS.get(word.removesuffix("set")))}
    return named.pop() if len(named) == 1 else None


def _refuse_data_sets(folder: Path) -> None:
    """Refuse folders of splits where a class folder is expected, at any depth."""

    def stop(error: OSError) -> None:
        raise error

    # Unlike `Path.rglob`, it tells folders from files without asking for each.
    for root, names, _ in os.walk(folder, onerror=stop):
        names[:] = sorted(name for name in names if not _is_junk(name))  # the rest is not entered
        path = Path(root)
        if _split_folders(path, [path / name for name in names]):
            raise InputError(
                f"{printable(path)}: it holds split folders, so it is a data set, not a class; "
                "give its own path"
            )


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
        raise InputError(
            f"{printable(root)}: too few images to split 70/10/20 ({error}); {RESPLIT} "
            "deals smaller classes too"
        ) from None
    for split, rows in zip(SPLITS, (train, val, test), strict=True):
        for row in rows:
            yield paths[row], labels[row], split


def _labelled(folder: Path) -> Iterator[tuple[Path, str]]:
    _refuse_images(folder)
    for class_folder in _folders(folder):
        # One name has two spellings in Unicode, and systems differ in which they give.
        label = unicodedata.normalize("NFC", class_folder.name)
        for path in _files_below(class_folder):
            yield path, label


def images_below(folder: Path) -> list[Path]:
    """Return all files that are called like images, at any depth, without what is hidden."""
    return [path for path in _files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        # A link that leads nowhere is no folder either, and is named when it is read.
        if not path.is_dir() and not any(map(_is_junk, path.relative_to(folder).parts)):
            yield path


def _refuse_images(folder: Path) -> None:
    """Refuse images beside class folders or splits: what class are they of?"""
    images = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not _is_junk(path.name) and path.is_file()
    ]
    if images and _folders(folder):
        raise InputError(
            f"{printable(images[0])}: it lies beside folders ({len(images)} such), so that its "
            "class is unknown; move it into a class folder, or elsewhere"
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_junk(path.name))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK
