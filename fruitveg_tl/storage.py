"""Files that are either whole or absent: every write lands under its name in one rename."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
