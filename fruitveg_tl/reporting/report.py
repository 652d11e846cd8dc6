"""Execute the notebooks and bind them into one PDF and one HTML file.

nbconvert turns the executed notebooks into Markdown without code, pandoc turns that into HTML and
into Typst, and Typst sets the pages. All three come as Python wheels, so that neither a browser
nor TeX has to be installed.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pypandoc
import typst
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter

from fruitveg_tl import config
from fruitveg_tl.config import PATHS, temporary_variable
from fruitveg_tl.data import registry
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import atomic_path

TITLE = "Transfer learning on images of fruit and vegetables"
ASSETS = Path(__file__).with_name("assets")


def execute(source: Path, target: Path) -> None:
    """Run a notebook from top to bottom in a fresh kernel and store it with its outputs.

    Args:
        source: the notebook; its folder is the kernel's working directory.
        target: where to store it; may be `source`.

    Raises:
        InputError: if a cell fails, with its error; `target` then keeps what it had.
    """
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        record_timing=False,
    )
    try:
        with _progress_of_kernels() as inherited:
            # What a cell prints on standard error is kept all the same.
            client.execute(stderr=subprocess.DEVNULL, **inherited)
    except CellExecutionError as error:
        last = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
        raise InputError(f"{source}: a cell failed: {last}") from None
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_download(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    with atomic_path(target) as temporary:
        nbformat.write(notebook, temporary)


def export(notebooks: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """Bind executed notebooks, in this order, into a PDF and an HTML file.

    Args:
        notebooks: executed; each begins with a first-level heading, its title.
        folder: where `report.pdf` and `report.html` are stored, and their figures.

    Returns:
        the PDF and the HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(_markdown(notebook, folder) for notebook in notebooks)
    subtitle = f"Commit {runtime.commit()}"
    html, pdf = folder / "report.html", folder / "report.pdf"
    extra = [f"--resource-path={folder}", f"--metadata=title:{TITLE}"]
    with atomic_path(html) as temporary:
        pypandoc.convert_text(
            text,
            "html",
            format=MARKDOWN,
            outputfile=str(temporary),
            extra_args=[
                *extra,
                f"--metadata=subtitle:{subtitle}",
                "--standalone",
                "--embed-resources",
                "--toc",
                "--toc-depth=2",
                f"--include-in-header={ASSETS / 'report.css.html'}",
            ],
        )
    body = pypandoc.convert_text(text, "typst", format=MARKDOWN, extra_args=extra)
    preamble = (ASSETS / "report.typ").read_text()
    preamble = preamble.replace("«title»", TITLE).replace("«subtitle»", subtitle)
    source = folder / "report.typ"
    source.write_text(preamble + body)
    with atomic_path(pdf) as temporary:
        typst.compile(source, output=temporary, root=folder)
    return pdf, html


# A figure's alternative text is no caption: without `implicit_figures` it stays where it is.
# Without `smart` two hyphens in a name stay two hyphens.
MARKDOWN = "markdown-implicit_figures-raw_html-smart+tex_math_dollars"


def _markdown(notebook: Path, folder: Path) -> str:
    exporter = MarkdownExporter(exclude_input=True)
    resources = {"unique_key": notebook.stem, "output_files_dir": notebook.stem}
    text, resources = exporter.from_filename(str(notebook), resources=resources)
    for name, content in resources["outputs"].items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return text


def _is_download(output: nbformat.NotebookNode) -> bool:
    """Tell what Keras says while it downloads from what a cell has to say."""
    lines = output.get("text", "").splitlines()
    return output.output_type == "stream" and all(
        line.startswith("Downloading data from ") for line in lines if line.strip()
    )


@contextmanager
def _progress_of_kernels() -> Iterator[dict]:
    """Name a descriptor of this process's standard error to kernels, and yield how they get it."""
    if os.name == "nt":  # no process inherits one there
        yield {}
        return
    descriptor = os.dup(2)
    try:
        with temporary_variable("PROGRESS", str(descriptor)):
            yield {"pass_fds": (descriptor,)}
    finally:
        os.close(descriptor)


def chapters(folder: Path, dataset: str | None) -> list[Path]:
    """Return the notebooks in reading order: chapters by number, then appendices.

    Args:
        folder: that holds them.
        dataset: images that they are executed on; None for those that each names itself. An
            appendix that carries another data set's name answers questions that these images
            cannot, and is left out.
    """
    files = sorted(folder.glob("[0-9]*.ipynb")) + sorted(folder.glob("A[0-9]*.ipynb"))
    about = {file: file.stem.split("_", 1)[-1] for file in files}
    return [f for f in files if about[f] not in registry.DATASETS or dataset in (None, about[f])]


def report(folder: Path, in_place: bool = False) -> tuple[Path, Path]:
    """Execute all notebooks in order and bind them.

    Args:
        folder: where everything is stored.
        in_place: True to store the executed notebooks where they came from, for committing.

    Returns:
        the PDF and the HTML file.

    Raises:
        InputError: if there are no notebooks or one fails.
    """
    sources = chapters(PATHS.notebooks, config.variable("DATASET"))
    if not sources:
        raise InputError(f"{PATHS.notebooks}: no notebooks here; restore them with «git checkout»")
    executed = []
    for source in sources:
        print(f"{source.name} …", flush=True)
        executed.append(source if in_place else folder / source.name)
        execute(source, executed[-1])
    return export(executed, folder)
