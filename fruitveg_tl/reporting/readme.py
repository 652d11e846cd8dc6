"""READMEs that show what stored runs and executed notebooks say: marked parts are filled in."""

import re

import nbformat
import pandas as pd

from fruitveg_tl.config import PATHS
from fruitveg_tl.reporting import tables
from fruitveg_tl.utils.errors import InputError

# README.md shows the study, the others their folder's details.
FILES = ("README.md", "data/results/README.md")


def fill(text: str, runs: pd.DataFrame) -> str:
    """Replace what stands between the marks of a README, `<!-- MARK … -->` and `<!-- /MARK -->`.

    `cell NOTEBOOK TAG` is what the cell with this tag shows in the executed notebook; `results
    CONTENT` the table of all finished runs on the images whose hash begins so, ablations left out.
    Within a line the marks stay within that line.

    Args:
        text: of the README.
        runs: from `studies.by_stage`.

    Raises:
        InputError: if a marked cell or set of images is not there.
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
    """Return what the cell with this tag shows in an executed notebook, by MIME type.

    None if no cell has the tag.
    """
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
    # A quotation says why the cell shows what it showed before, see `notebook.show_committed`.
    return "\n\n".join(text for text in shown if not text.startswith("> "))


def _finished(runs: pd.DataFrame, content: str) -> str:
    chosen = runs[runs["content"].str.startswith(content) & (runs["ablation"] == "")]
    if not len(chosen):
        raise InputError(f"no finished run on images {content}; run it first, see README")
    return tables.markdown(tables.evaluated_models(chosen).drop(columns="Dataset"))
