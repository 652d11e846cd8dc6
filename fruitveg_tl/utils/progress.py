"""Progress: a bar on a terminal and in a live notebook, lines of text everywhere else."""

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
    """Return a bar that vanishes when done, or its likeness in text; `items` pass through it.

    In text, a line says that a phase is over, and every minute before how far it is. `report` has
    its kernels send theirs to its own standard error: what they print would stay in the notebook.

    Args:
        what: name of the phase.
        total: number of steps.
        items: to iterate over; None where the caller calls `update`.
        initial: steps that an earlier call has done.
        unit: what a step is, in the plural.
    """
    if (stream := _elsewhere()) or not (_in_kernel() or sys.stderr.isatty()):
        return _Lines(items, what, total, file=stream or sys.stderr, initial=initial, unit=unit)
    return tqdm(items, what, total, leave=False, initial=initial, unit=unit)


def note(text: str) -> None:
    """Say something between two phases; a live notebook would keep it, so there nothing is said."""
    stream = _elsewhere()
    if stream or not _in_kernel():
        print(text, file=stream or sys.stderr, flush=True)


def _elsewhere() -> TextIO | None:
    """Return the stream of the process that started this kernel, if it is one of `report`'s."""
    descriptor = variable("PROGRESS")
    return _stream(int(descriptor)) if descriptor else None


@cache
def _stream(descriptor: int) -> TextIO:
    return os.fdopen(os.dup(descriptor), "w", buffering=1)


def _in_kernel() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class _Lines(tqdm):
    """A bar whose every state is a line."""

    def __init__(self, items: Iterable | None, what: str, total: int, **options):
        options |= {"mininterval": EVERY, "delay": EVERY, "miniters": 1}
        super().__init__(items, what, total, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write how far the phase is."""
        done = self.n - self.initial
        left = self.format_dict["elapsed"] * (self.total - self.n) / done if done else 0
        self._write(f"about {tqdm.format_interval(left)} to go")

    def close(self) -> None:
        """Write that the phase is over, or where it was left."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        self._write(f"in {tqdm.format_interval(self.format_dict['elapsed'])}")

    def _write(self, when: str) -> None:
        self.fp.write(f"{self.desc}: {self.n:,} of {self.total:,} {self.unit}, {when}\n")
        self.fp.flush()
