"""Files that are either whole or absent: every write lands under its name in one rename."""

import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` if the block succeeds.

    The block may create a file or a folder there. On an exception the temporary is removed and
    `path` keeps what it had; after a kill a stale temporary stays, which no reader looks at.
    An existing folder at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = scratch / path.name
    try:
        yield temporary
        if path.is_dir():
            path.rename(scratch / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; others wait at the door.

    The lock is the operating system's: it ends with the process, however that ends. What earlier
    makers that were killed left half done is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{path}: another process is making it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        yield
    finally:
        lock.release()


def new_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Return a memory-mapped array in a new file, with its space on disk reserved.

    Without that a disk that fills up would end the process at some later assignment (SIGBUS).

    Raises:
        OSError: if there is no space for it.
    """
    array = np.lib.format.open_memmap(file, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def remove(folder: Path) -> int:
    """Remove a folder, if there is one, and return how many bytes that frees."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Return the hexadecimal SHA-256 of `content` as canonical JSON: a key for caches."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
