"""Progress bars: on a terminal and in a live notebook, silent in logs and committed outputs."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(what: str, total: int, items: Iterable | None = None, initial: int = 0) -> tqdm:
    """Return a bar that vanishes when done; `items`, if given, are iterated through it.

    `report.execute` sets FRUITVEG_QUIET, for what a bar prints would stay in the notebook.
    """
    quiet = "FRUITVEG_QUIET" in os.environ
    shown = sys.stderr.isatty() or (_in_kernel() and not quiet)
    return tqdm(items, what, total=total, initial=initial, leave=False, disable=not shown)


def _in_kernel() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
