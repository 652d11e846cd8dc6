"""Atomic writing of files and folders, without deleting files of others.

`new_file` writes a file; `new_folder` replaces a folder and `remove` deletes one only if this
program made it. The whole package writes through them.
"""

import glob
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from fruitveg_tl.utils.errors import InputError, printable

HASHES = "model.keras.sha256"  # in a run's folder: the hashes of its network's files
MARK = ".fruitveg-tl"  # a file in every folder that this program may replace or delete
STDOUT = Path("-")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there becomes `path`.

    If the block succeeds, it replaces a regular file in one step. It follows links and writes into
    devices and FIFOs; `-` is standard output. Raises InputError for a folder, a socket or a
    circular link.
    """
    if path == STDOUT or is_stream(path):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch, path.name)
            content = Path(scratch, path.name).read_bytes()
        if path == STDOUT:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        else:
            with path.open("wb") as stream:
                stream.write(content)
        return
    target = file_target(path)
    with _scratch(target) as temporary:
        yield temporary
        temporary.replace(target)


def is_stream(path: Path) -> bool:
    """Return whether a path leads to a device or a FIFO."""
    with suppress(OSError):
        mode = path.stat().st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return False


def file_target(path: Path) -> Path:
    """Return the file, existing or not, that a path's links lead to; errors as in `new_file`."""
    try:
        target = path.resolve()
        there = target.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        if isinstance(error, PermissionError):
            raise
        raise InputError(f"{printable(path)}: a link that leads nowhere; remove it") from None
    if there and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a file"
        raise InputError(f"{printable(path)}: {kind}; give the name of a file")
    return target


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it becomes `path` in one step if the block succeeds.

    Raises InputError, and changes nothing, if `path` exists and this program did not make it.
    """
    target = path.resolve()
    _refuse_strangers(target)
    with _scratch(target) as temporary:
        temporary.mkdir()
        yield temporary
        _mark(temporary)
        _refuse_strangers(target)  # created meanwhile
        if target.exists():
            target.rename(temporary.with_name("replaced"))
        temporary.rename(target)


def own_folder(path: Path) -> Path:
    """Return a folder that `remove` may delete; create it if it is missing."""
    path.mkdir(parents=True, exist_ok=True)
    if not any(path.iterdir()):
        _mark(path)
    return path


def remove(folder: Path) -> int:
    """Remove one of this program's folders, if it exists; return the number of bytes freed.

    Raises InputError, and removes nothing, if this program did not make the folder.
    """
    _refuse_strangers(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size


def _mark(folder: Path) -> None:
    (folder / MARK).write_text("fruitveg-tl made this folder and may replace or delete it.\n")


def _refuse_strangers(path: Path) -> None:
    if path.exists() and not (path.is_dir() and (path / MARK).is_file()):
        raise InputError(
            f"{printable(path)}: fruitveg-tl did not make it (it holds no {MARK}), so it stays as "
            "it is; move it elsewhere"
        )


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Yield a hidden temporary path next to `target`; a killed process leaves it on disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield scratch / target.name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; remove what killed processes left behind.

    The operating system releases the lock when the process ends.
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
            if (stale / "replaced").exists() and not path.exists():
                (stale / "replaced").rename(path)  # killed between the two steps of `new_folder`
            if {child.name for child in stale.iterdir()} <= {path.name, "replaced"}:
                shutil.rmtree(stale, ignore_errors=True)
        yield
    finally:
        lock.release()


def new_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Return a memory-mapped array in a new file; OSError if the disk lacks the space for it.

    Without reserved space, a full disk would kill the process at a later assignment (SIGBUS).
    """
    array = np.lib.format.open_memmap(file, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys, atomically."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Return the hexadecimal SHA-256 of `content` as canonical JSON: a key for caches."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def record_hashes(*files: Path) -> None:
    """Write the hashes of files in one folder, as `sha256sum -c` reads them."""
    lines = "".join(f"{sha256_file(file)}  {file.name}\n" for file in files)
    (files[0].parent / HASHES).write_text(lines)


def is_recorded(file: Path) -> bool:
    """Return whether a file still has the hash that was recorded beside it."""
    record = file.parent / HASHES
    lines = record.read_text().splitlines() if record.is_file() else []
    return f"{sha256_file(file)}  {file.name}" in lines
