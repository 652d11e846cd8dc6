"""Fill the marked parts of READMEs from stored runs and executed notebooks."""

import re

import nbformat
import pandas as pd

from fruitveg_tl.config import PATHS
from fruitveg_tl.reporting import tables
from fruitveg_tl.utils.errors import InputError

# README.md shows the study, the other its folder's details.
FILES = ("README.md", "data/results/README.md")


def fill(text: str, runs: pd.DataFrame) -> str:
    """Fill in a README between its marks, `<!-- MARK … -->` and `<!-- /MARK -->`.

    `cell NOTEBOOK TAG` becomes the output of the tagged cell; `results CONTENT` becomes the table
    of runs (`studies.by_stage`) on the images whose hash begins with CONTENT, without ablations.
    Raises InputError if a marked cell or set of images is missing.
    """
    contents = {
        "cell": _cell,
        "results": lambda content: _finished(runs, content),
    }
    return re.sub(
        rf"(<!-- ({'|'.join(contents)})((?: [\w-]+)*) -->)(\n?).*?(<!-- /\2 -->)",
        lambda mark: mark[1] + mark[4] + contents[mark[2]](*mark[3].split()) + mark[4] + mark[5],
        text,
        flags=re.DOTALL,
    )


def tagged_outputs(notebook: nbformat.NotebookNode, tag: str) -> list[dict] | None:
    """Return the outputs, by MIME type, of the cell with this tag; None if no cell has it."""
    for cell in notebook.cells:
        if tag in cell.metadata.get("tags", ()):
            return [output.get("data", {}) for output in cell.outputs]
    return None


def _cell(notebook: str, tag: str) -> str:
    file = PATHS.notebooks / f"{notebook}.ipynb"
    outputs = tagged_outputs(nbformat.read(file, 4), tag)
    if outputs is None:
        raise InputError(f"{file}: no cell has the tag {tag}")
    shown = [data["text/markdown"].strip() for data in outputs if "text/markdown" in data]
    # Quotations explain a committed output, see `notebook.show_committed`.
    return "\n\n".join(text for text in shown if not text.startswith("> "))


def _finished(runs: pd.DataFrame, content: str) -> str:
    chosen = runs[runs["content"].str.startswith(content) & (runs["ablation"] == "")]
    if not len(chosen):
        raise InputError(f"no finished run on images {content}; run it first, see README")
    return tables.markdown(tables.evaluated_models(chosen).drop(columns="Dataset"))
