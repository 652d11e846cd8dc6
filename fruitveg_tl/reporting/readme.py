"""READMEs that show what stored runs and executed notebooks say: marked parts are filled in."""

import re

import nbformat
import pandas as pd

from fruitveg_tl.config import PATHS
from fruitveg_tl.reporting import tables
from fruitveg_tl.utils.errors import InputError

# README.md shows the study, the others their folder's details.
FILES = ("README.md", "data/results/README.md", "data/weights/README.md")


def fill(text: str, runs: pd.DataFrame) -> str:
    """Replace what stands between the marks of a README.

    `<!-- cell NOTEBOOK TAG -->` … `<!-- /cell -->` is what the cell with this tag shows in the
    executed notebook; the other marks are those of `tables.fill`.

    Args:
        text: of the README.
        runs: from `results.read`.

    Raises:
        InputError: if a marked cell or set of images is not there.
    """
    text = re.sub(
        r"(<!-- cell (\w+) ([\w-]+) -->).*?(<!-- /cell -->)",
        lambda mark: f"{mark[1]}\n{_shown(mark[2], mark[3])}\n{mark[4]}",
        text,
        flags=re.DOTALL,
    )
    return tables.fill(text, runs)


def _shown(notebook: str, tag: str) -> str:
    """Return the Markdown that one tagged cell of an executed notebook shows."""
    file = PATHS.notebooks / f"{notebook}.ipynb"
    for cell in nbformat.read(file, 4).cells:
        if tag in cell.metadata.get("tags", ()):
            return "\n\n".join(
                output.data["text/markdown"].strip()
                for output in cell.outputs
                if "text/markdown" in output.get("data", {})
            )
    raise InputError(f"{file}: no cell has the tag {tag}")
