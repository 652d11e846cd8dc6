"""The data sets by name, and how to download, generate or read each."""

import os
from dataclasses import replace
from pathlib import Path

from fruitveg_tl import config
from fruitveg_tl.config import PATHS, SPLITS, SYNTHETIC, TEST, TRAIN, recipe
from fruitveg_tl.data import grocery, kaggle, resplit, synthetic
from fruitveg_tl.data.dataset import Images, index
from fruitveg_tl.data.folders import from_folders
from fruitveg_tl.utils.errors import InputError, printable

GROCERY = {  # the folders of its images that each set has
    "grocery": ("Fruit", "Vegetables"),
    "grocery-all": ("Fruit", "Vegetables", "Packages"),
}
FRUITS_VEGES = "fruits-veges"
DATASETS = (SYNTHETIC, *GROCERY, FRUITS_VEGES)


def load(
    name: str,
    label_level: str | None = None,
    data: str | os.PathLike | None = None,
    fold: int = 0,
    complete: bool = True,
) -> Images:
    """Index a data set, downloaded or generated if needed; InputError if it cannot be used.

    Args:
        name: "synthetic", "grocery" (fruit and vegetables), "grocery-all" (packages too, as in the
            published tables), "fruits-veges", or a folder, see `folders.from_folders`.
        label_level: "coarse" or "fine", for grocery only; None is "coarse" there.
        data: a copy on disk in the upstream layout; default: `FRUITVEG_DATA`.
        fold: 1 to 5 creates new splits, see `resplit`; 0 keeps the splits.
        complete: False accepts missing splits and classes.
    """
    _refuse_contradictions(name, label_level, data)
    data = data or config.variable("DATA")
    folder, partial = Path(name).expanduser(), fold > 0 or not complete
    copy = Path(data).expanduser() if data else None
    if name == SYNTHETIC:
        root = synthetic.generate(PATHS.data / SYNTHETIC)
        found = from_folders(root)
    elif name in GROCERY:
        root = grocery.upstream_root(copy or grocery.fetch(PATHS.data / "grocery"))
        found = grocery.from_lists(root, label_level or "coarse", GROCERY[name])
    elif name == FRUITS_VEGES:
        root = copy or kaggle.fetch()
        _refuse_grocery(root)
        found = from_folders(root, partial)
    elif name and folder.is_dir():
        root = folder
        found = from_folders(root, partial)
    else:
        known = ", ".join(DATASETS)
        raise InputError(f"unknown dataset {name!r}; choose one of {known}, or give a folder")
    # The published validation split of grocery lacks four classes.
    required = (TRAIN, TEST) if name in GROCERY else SPLITS
    images = index(title(name, label_level), root, list(found), () if partial else required)
    asked = {"dataset": located(name)}
    if label_level:
        asked["label_level"] = label_level
    images = replace(images, asked=asked, recipe=recipe(name))
    return resplit.resplit(images, fold) if fold else images


def title(name: str, label_level: str | None = None, fold: int = 0) -> str:
    """Return the name of the images that `load` returns, without loading them."""
    level = f"-{label_level or 'coarse'}" if name in GROCERY else ""
    return f"{Path(located(name)).name}{level}" + (f"-resplit{fold}" if fold else "")


def located(name: str, start: Path = Path()) -> str:
    """Return a data set's name, or a folder's absolute path; a relative one begins at `start`."""
    is_name = name in DATASETS or not name
    return name if is_name else str((start / Path(name).expanduser()).resolve())


def on_disk(name: str, data: str | os.PathLike | None = None) -> bool:
    """Return whether `load` finds the images without a download."""
    if name in DATASETS:
        return (
            name == SYNTHETIC
            or bool(data or config.variable("DATA"))
            or (name in GROCERY and (PATHS.data / "grocery").is_dir())
        )
    return Path(name).expanduser().is_dir()


def _refuse_contradictions(
    name: str, label_level: str | None, data: str | os.PathLike | None
) -> None:
    if data and (name == SYNTHETIC or name not in DATASETS):
        raise InputError(
            f"--data {data}: {name} needs no copy; name the copied set with --dataset, "
            f"or give the folder itself: --dataset {data}"
        )
    if label_level not in (None, "coarse", "fine"):
        raise InputError(f"unknown label_level {label_level!r}; choose coarse or fine")
    if label_level and name not in GROCERY:
        raise InputError(f"{name}: no levels of labels to choose from; only grocery has them")


def _refuse_grocery(root: Path) -> None:
    if (grocery.upstream_root(root) / grocery.CLASS_TABLE).exists():
        raise InputError(
            f"{printable(root)}: a copy of the Grocery Store Dataset, not of fruits-veges; give "
            "that set's own folder, or none to fetch it from Kaggle"
        )
