"""Progress: a bar in a terminal or a live notebook, lines of text elsewhere."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from typing import TextIO

from tqdm import tqdm

from fruitveg_tl.config import variable

EVERY = 60  # seconds between two lines of text


def progress(
    what: str, total: int, items: Iterable | None = None, initial: int = 0, unit: str = "files"
) -> tqdm:
    """Return a bar that disappears when done, or `_Lines`; without `items`, call its `update`."""
    if (stream := _elsewhere()) or not (_in_kernel() or sys.stderr.isatty()):
        return _Lines(items, what, total, file=stream or sys.stderr, initial=initial, unit=unit)
    return tqdm(items, what, total, leave=False, initial=initial, unit=unit)


def note(text: str) -> None:
    """Print a message between two phases, except in a live notebook, which would store it."""
    stream = _elsewhere()
    if stream or not _in_kernel():
        print(text, file=stream or sys.stderr, flush=True)


def _elsewhere() -> TextIO | None:
    """Return the standard error of `report` if it started this kernel: notebooks stay clean."""
    descriptor = variable("PROGRESS")
    return _stream(int(descriptor)) if descriptor else None


@cache
def _stream(descriptor: int) -> TextIO:
    return os.fdopen(os.dup(descriptor), "w", buffering=1)


def _in_kernel() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class _Lines(tqdm):
    """A bar that writes a line of text every minute, and one at the end."""

    def __init__(self, items: Iterable | None, what: str, total: int, **options):
        options |= {"mininterval": EVERY, "delay": EVERY, "miniters": 1}
        super().__init__(items, what, total, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the current progress."""
        done = self.n - self.initial
        left = self.format_dict["elapsed"] * (self.total - self.n) / done if done else 0
        self._write(f"about {tqdm.format_interval(left)} to go")

    def close(self) -> None:
        """Write the final progress."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        self._write(f"in {tqdm.format_interval(self.format_dict['elapsed'])}")

    def _write(self, when: str) -> None:
        self.fp.write(f"{self.desc}: {self.n:,} of {self.total:,} {self.unit}, {when}\n")
        self.fp.flush()
