"""The two public datasets, fetched from where their authors publish them."""

import hashlib
import stat
import zipfile
from pathlib import Path, PurePosixPath

import kagglehub
import pooch

from fruitveg_tl.config import CACHE_DIR, SPLITS
from fruitveg_tl.errors import InputError
from fruitveg_tl.storage import atomic_path, exclusive, sha256_file

KAGGLE_HANDLE = "kritikseth/fruit-and-vegetable-image-recognition"
GROCERY_URL = "https://github.com/marcusklasson/GroceryStoreDataset/archive/refs/heads/master.zip"
# GitHub builds archives on demand and promises no stable bytes for them, so the pin is on the
# content: every fruit and vegetable photograph, the split files and the class table.
GROCERY_SHA256 = "f374e86710251b1da4c1d542be92df2b42e8aeebf129a8a49a51378b963fcd0f"
GROCERY_FOLDERS = ("Fruit", "Vegetables")
TIMEOUT = 20  # seconds without a byte before a server counts as silent
UNPACKED_LIMIT = 2**30  # bytes; the true archive unpacks to less than a fifth


def fruits_veges() -> Path:
    """Fetch the Kaggle set «Fruits and Vegetables Image Recognition» by kagglehub.

    Returns:
        the folder with train, validation and test, in kagglehub's cache.

    Raises:
        InputError: if Kaggle cannot be reached; says how to go on without.
    """
    try:
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except Exception as error:  # kagglehub passes on requests', zipfile's and its own errors
        raise InputError(
            f"fruits-veges: the download of {KAGGLE_HANDLE} from Kaggle failed "
            f"({_first_line(error)}); fetch it in a browser, unpack it and set FRUITVEG_DATA to "
            "the folder that holds train/, validation/ and test/"
        ) from None


def grocery(target: Path) -> Path:
    """Fetch the fruit and vegetables of the Grocery Store Dataset (Klasson et al., WACV 2019).

    Args:
        target: folder to unpack into; if it exists, nothing is fetched.

    Returns:
        `target`, with the upstream layout below `dataset/`.

    Raises:
        InputError: if GitHub cannot be reached or the content is not what this study pins.
    """
    if target.exists():
        return target
    with exclusive(target):
        return target if target.exists() else _fetch_grocery(target)


def _fetch_grocery(target: Path) -> Path:
    archive = CACHE_DIR / "downloads" / "GroceryStoreDataset.zip"
    client = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    try:
        pooch.retrieve(GROCERY_URL, None, archive.name, archive.parent, downloader=client)
        with atomic_path(target) as temporary:
            _unpack(archive, temporary)
            if (found := content_sha256(temporary / "dataset")) != GROCERY_SHA256:
                raise ValueError(f"its content has SHA-256 {found}, not {GROCERY_SHA256}")
    except Exception as error:  # pooch passes on requests', the system's and zipfile's errors
        archive.unlink(missing_ok=True)
        raise InputError(
            f"grocery: the download of {GROCERY_URL} failed ({_first_line(error)}); try again, "
            "or clone the repository elsewhere and set FRUITVEG_DATA to it"
        ) from None
    archive.unlink()
    return target


def content_sha256(dataset: Path) -> str:
    """Return one SHA-256 for the files that this study reads below upstream's `dataset/`."""
    files = [dataset / "classes.csv"] + [dataset / f"{split}.txt" for split in SPLITS]
    for split in SPLITS:
        for folder in GROCERY_FOLDERS:
            files += (dataset / split / folder).rglob("*.jpg")
    lines = sorted(f"{file.relative_to(dataset).as_posix()} {sha256_file(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _unpack(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        _refuse_hostile(file.infolist())
        for member in file.infolist():
            # GitHub puts everything below one folder named after the branch.
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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
