"""Images in class folders, with or without folders for the splits."""

import glob
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from fruitveg_tl.config import RESPLIT, SPLITS, TEST, TRAIN, VAL
from fruitveg_tl.data.dataset import Item
from fruitveg_tl.data.images import IMAGE_SUFFIXES
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import MARK

# The Kaggle set uses "validation"; others use "val", "Training" or "seg_train".
SPLIT_WORDS = {
    folder: split
    for split, folders in {
        TRAIN: ("train", "training"),
        VAL: ("val", "valid", "validation", "dev"),
        TEST: ("test", "testing"),
    }.items()
    for folder in folders
}
# "test" in "Test_images" and in "testset2".
WORD = re.compile(rf"({'|'.join(SPLIT_WORDS)})(?:set|data|images?|photos?|split)?")
# Files of operating systems, archives and storage servers, in addition to dotfiles.
JUNK = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "zbthumbnail.info",
     "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
)  # fmt: skip
JUNK_ENDINGS = (":zone.identifier", ".xmp", ".aae", ".lnk")  # of an image's sidecar file


def from_folders(root: Path, partial: bool = False) -> Iterator[Item]:
    """Yield the images of a folder; `partial` accepts missing splits and empty classes.

    `root` holds train, validation and test folders of class folders. Other common split names are
    recognised, in upper or lower case. Class folders alone are split 70/10/20, stratified and
    seeded. Hidden and system files (`JUNK`) are skipped. Raises InputError if a folder, a split or
    a class's images are missing, ambiguous, or too few to split.
    """
    if not root.is_dir():
        raise InputError(f"{printable(root)}: no such folder; correct --data or FRUITVEG_DATA")
    splits = _split_folders(root)
    if not splits:
        yield from _from_class_folders(root, partial)
        return
    if not partial and (missing := [split for split in SPLITS if split not in splits]):
        names = ", ".join(printable(folder.name) for folder in splits.values())
        raise InputError(
            f"{printable(root)}: no folder for {', '.join(missing)} beside {names}; add it, or "
            f"deal all images anew with {RESPLIT}"
        )
    classes, found = set(), set()
    for split, folder in splits.items():
        classes |= {_label(class_folder) for class_folder in _folders(folder)}
        for path, label in _labelled(folder):
            found.add(label)
            yield path, label, split
    if not partial:
        _refuse_empty_classes(root, classes - found)


def _from_class_folders(root: Path, partial: bool) -> Iterator[Item]:
    folders = _folders(root)
    for folder in folders:
        _refuse_data_sets(folder)
    images = list(_labelled(root))
    if partial:
        yield from ((path, label, TRAIN) for path, label in images)
        return
    empty = {_label(folder) for folder in folders} - {label for _, label in images}
    _refuse_empty_classes(root, empty)
    if images:
        yield from _stratified(root, images)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; empty if `root` holds class folders."""
    folders = _folders(root)
    named: dict[str, list[Path]] = {}
    for folder in folders:
        if split := _split_of(folder):
            named.setdefault(split, []).append(folder)
    # A lone folder "Test" may be a class.
    if TRAIN not in named and len(named) < 2:
        return {}
    for same in named.values():
        if len(same) > 1:
            names = " and ".join(printable(folder.name) for folder in same)
            raise InputError(f"{printable(root)}: {names}: two folders of one split; keep one")
    splits = {split: folder for split, (folder,) in named.items()}
    if strange := [folder for folder in folders if folder not in splits.values()]:
        names = ", ".join(printable(folder.name) for folder in strange)
        raise InputError(
            f"{printable(root)}: beside the splits, what is {names}? Move it elsewhere"
        )
    _refuse_images(root)
    return splits


def _split_of(folder: Path) -> str | None:
    """Return the split that a folder's name denotes; None if it denotes none or several.

    A name of several words counts only if the folder has subfolders: "train station" is a class.
    """
    if split := SPLIT_WORDS.get(folder.name.lower()):
        return split
    matches = map(WORD.fullmatch, re.split(r"[^a-z]+", folder.name.lower()))
    named = {SPLIT_WORDS[match[1]] for match in matches if match}
    return named.pop() if len(named) == 1 and _folders(folder) else None


def _refuse_data_sets(folder: Path) -> None:
    """Refuse split folders inside a class folder, at any depth."""
    if _split_folders(folder):
        raise InputError(
            f"{printable(folder)}: it holds split folders, so it is a data set, not a class; "
            "give its own path"
        )
    for inner in _folders(folder):
        if not inner.is_symlink():
            _refuse_data_sets(inner)


def _refuse_empty_classes(root: Path, classes: set[str]) -> None:
    if classes:
        names = ", ".join(map(repr, sorted(classes)))
        raise InputError(f"{printable(root)}: no image of {names}; add some or delete the folder")


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
            "handles smaller classes too"
        ) from None
    for split, rows in zip(SPLITS, (train, val, test), strict=True):
        for row in rows:
            yield paths[row], labels[row], split


def _labelled(folder: Path) -> Iterator[tuple[Path, str]]:
    _refuse_images(folder)
    for class_folder in _folders(folder):
        files = list(_files_below(class_folder))
        if files and all(path.parent != class_folder for path in files):
            raise InputError(
                f"{printable(class_folder)}: it holds only folders, so it is no class; give the "
                "folder whose folders are the classes"
            )
        for path in files:
            yield path, _label(class_folder)


def _label(class_folder: Path) -> str:
    # Unicode encodes one name in two ways, and file systems differ in which they use.
    return unicodedata.normalize("NFC", class_folder.name)


def passed_over(folder: Path) -> str | None:
    """Count in one line the system files that are skipped; None if there are none."""
    names = []
    for _, folders, files in os.walk(folder):
        names += [name for name in (*folders, *files) if _is_junk(name) and name != MARK]
        folders[:] = [name for name in folders if not _is_junk(name)]
    if not names:
        return None
    kinds = ", ".join(sorted({printable(name) for name in names})[:3])
    return f"{printable(folder)}: passed over {len(names):,} that systems leave behind ({kinds})"


def _images_below(folder: Path) -> list[Path]:
    """Return all visible files with an image suffix, at any depth."""
    return [path for path in _files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def find_images(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images that files, folders (recursively) and glob patterns name.

    Each file comes once, in the order given; with them comes a line for each name without images.
    """
    files, problems = {}, []
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            found = _images_below(path)
        elif path.exists():
            found = [path]
        else:
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (it may be absolute)
            found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            problems.append(f"{printable(path)}: no image there; give files, folders or patterns")
        files |= dict.fromkeys(found)
    return list(files), problems


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        # A broken link is not a folder either; reading it reports the error.
        if not path.is_dir() and not any(map(_is_junk, path.relative_to(folder).parts)):
            yield path


def _refuse_images(folder: Path) -> None:
    """Refuse images where class folders or splits are expected: their class is unknown."""
    images = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not _is_junk(path.name) and path.is_file()
    ]
    if images and not _folders(folder):
        raise InputError(
            f"{printable(folder)}: it holds images but no class folders; give the folder above"
        )
    if images:
        raise InputError(
            f"{printable(images[0])}: it lies beside folders ({len(images)} such), so that its "
            "class is unknown; move it into a class folder, or elsewhere"
        )


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # needs no stat call per entry
        return sorted(Path(x.path) for x in entries if x.is_dir() and not _is_junk(x.name))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK or name.lower().endswith(JUNK_ENDINGS)
