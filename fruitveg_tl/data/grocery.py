"""The Grocery Store Dataset (Klasson et al., WACV 2019): source, layout, published results."""

import csv
import hashlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
import pooch

from fruitveg_tl.config import PATHS, SPLITS
from fruitveg_tl.data.dataset import Item
from fruitveg_tl.utils.errors import InputError, first_line
from fruitveg_tl.utils.storage import exclusive, new_folder, sha256_file

GROCERY_URL = "https://github.com/marcusklasson/GroceryStoreDataset/archive/refs/heads/master.zip"
# GitHub does not guarantee stable archive bytes, so the hash covers the content: every fruit and
# vegetable image, the split files and the class table.
GROCERY_SHA256 = "f374e86710251b1da4c1d542be92df2b42e8aeebf129a8a49a51378b963fcd0f"
GROCERY_FOLDERS = ("Fruit", "Vegetables")
CLASS_TABLE = "classes.csv"
TIMEOUT = 20  # seconds without a byte before a server counts as silent
UNPACKED_LIMIT = 2**30  # bytes; the true archive unpacks to less than a fifth

# Coarse classes of grocery that ImageNet-1k has too, or a variety of them (Granny Smith, head
# cabbage, bell pepper).
IN_IMAGENET = (
    "Apple", "Banana", "Cabbage", "Cucumber", "Lemon", "Mushroom", "Orange", "Pepper",
    "Pineapple", "Pomegranate", "Zucchini",
)  # fmt: skip


def fetch(target: Path) -> Path:
    """Download the fruit and vegetables to `target`/dataset, unless `target` exists; return it.

    Raises InputError if GitHub cannot be reached or the content has another hash.
    """
    if target.exists():
        return target
    with exclusive(target):
        return target if target.exists() else _fetch_grocery(target)


def _fetch_grocery(target: Path) -> Path:
    archive = PATHS.cache / "downloads" / "GroceryStoreDataset.zip"
    client = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    try:
        pooch.retrieve(GROCERY_URL, None, archive.name, archive.parent, downloader=client)
        with new_folder(target) as temporary:
            _unpack(archive, temporary)
            if (content := content_sha256(temporary / "dataset")) != GROCERY_SHA256:
                raise ValueError(f"its content has SHA-256 {content}, not {GROCERY_SHA256}")
    except Exception as error:  # requests, the system and zipfile raise their own kinds
        archive.unlink(missing_ok=True)
        raise InputError(
            f"grocery: the download of {GROCERY_URL} failed ({first_line(error)}); try again, "
            "or clone the repository elsewhere and set FRUITVEG_DATA to it"
        ) from None
    archive.unlink()
    return target


def content_sha256(dataset: Path) -> str:
    """Return one SHA-256 for the files that this study reads below upstream's `dataset/`."""
    files = [dataset / CLASS_TABLE] + [dataset / f"{split}.txt" for split in SPLITS]
    for split in SPLITS:
        for folder in GROCERY_FOLDERS:
            files += (dataset / split / folder).rglob("*.jpg")
    lines = sorted(f"{file.relative_to(dataset).as_posix()} {sha256_file(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _unpack(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        _refuse_hostile(file.infolist())
        for member in file.infolist():
            # GitHub archives have one top folder, named after the branch.
            parts = Path(member.filename).parts[1:]
            wanted = len(parts) == 2 or (len(parts) > 3 and parts[2] in GROCERY_FOLDERS)
            if parts[:1] == ("dataset",) and wanted and not member.is_dir():
                path = target.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read(member))


def _refuse_hostile(members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"the archive is unsafe: it holds {member.filename!r}")
    if (total := sum(member.file_size for member in members)) > UNPACKED_LIMIT:
        raise ValueError(f"the archive is unsafe: it would unpack to {total:,} bytes")


def upstream_root(folder: Path) -> Path:
    """Return the folder of a copy that holds the class table: its `dataset/`, or itself."""
    return folder / "dataset" if (folder / "dataset").is_dir() else folder


def from_lists(root: Path, label_level: str, categories: tuple[str, ...]) -> Iterator[Item]:
    """Yield the images in the data set's split files, with "coarse" or "fine" labels.

    `root` holds classes.csv and the split files; `categories` are those of Fruit, Vegetables and
    Packages to keep. Raises InputError if `root` has no class table.
    """
    if not (root / CLASS_TABLE).is_file():
        raise InputError(
            f"{root}: no {CLASS_TABLE} here; --data or FRUITVEG_DATA must be the folder of the "
            "Grocery Store Dataset that holds dataset/"
        )
    with (root / CLASS_TABLE).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))[1:]
    names = {int(number): {"fine": fine, "coarse": coarse} for fine, number, coarse, *_ in rows}
    for split in SPLITS:
        # An editor may have added a byte order mark or a blank line.
        lines = (root / f"{split}.txt").read_text(encoding="utf-8-sig").splitlines()
        for line in filter(str.strip, lines):
            path, fine, _ = (field.strip() for field in line.split(","))
            if path.split("/")[1] in categories:
                yield root / path, names[int(fine)][label_level], split


def class_hierarchy(images: pd.DataFrame) -> pd.DataFrame:
    """Return the fruit (e.g. Apple, Cabbage) and the category (e.g. Packages) of each class.

    `images` has the path, in upstream's layout, and the label of at least one image of each class.
    """
    folders = images["path"].str.split("/", expand=True)
    hierarchy = pd.DataFrame(
        {"fruit": folders[2], "category": folders[1], "class": images["label"]}
    )
    return hierarchy.drop_duplicates("class").set_index("class").sort_index()


def published() -> pd.DataFrame:
    """Return the accuracies published for the Grocery Store Dataset, official split, all classes.

    `fine` has 81 classes and `coarse` 43; NaN is unpublished. From Klasson et al. (WACV 2019) and
    Antioquia (2021), as listed by github.com/arvention/grocery-store-product-classification.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"))
