"""Bind the notebooks, as committed and as executed here, each into a PDF and an HTML file.

nbconvert turns the executed notebooks into Markdown, of the code what builds and trains; pandoc
turns that into HTML and into Typst, and Typst sets the pages (see `exporter`).
"""

import ast
import copy
import os
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pypandoc
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from fruitveg_tl import config
from fruitveg_tl.config import PATHS, temporary_variable
from fruitveg_tl.data import registry
from fruitveg_tl.reporting.exporter import ASSETS, MARKDOWN, store_figures, to_typst, typeset
from fruitveg_tl.reporting.readme import tagged_outputs
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import new_file, write_json

TITLE = "Transfer learning on images of fruit and vegetables"
ABSTRACT = ("answer", "models", "scores")  # tags of the cells whose output opens a report
# What the appendix about FRUITVEG_OTHER is called, and the tag of cells elsewhere about it.
SECOND_SET = "second_set"
RECIPE = "recipe"  # tag of the cells that build and train: their code is bound
CODE_LEFT_OUT = "code left out"
PARAMETERS = "parameters"  # tag of the cell that a reader edits, and `report` sets
REPEATED = "repeated"  # tag of the cells that say in every notebook what the first has said


def execute(source: Path, target: Path, parameters: Mapping[str, object] | None = None) -> None:
    """Run a notebook from top to bottom in a fresh kernel and store it with its outputs.

    The kernel works in the folder of this process: a relative path in a variable means the same
    there as here.

    Args:
        source: the notebook.
        target: where to store it; may be `source`.
        parameters: what its cell tagged `parameters` sets otherwise.

    Raises:
        InputError: if a cell fails, with its error, or the kernel dies; `target` then keeps what it
            had.
        KeyboardInterrupt: after Ctrl-C, once the kernel has ended.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if parameters and PARAMETERS in cell.metadata.get("tags", ()):
            cell.source = _with_parameters(cell.source, parameters)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(Path.cwd())}},
        record_timing=False,
        # At Ctrl-C an orderly end may hang: the interrupted cell starts a second one beside it.
        shutdown_kernel="immediate",
    )
    _run_cells(client, source)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_download(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    with new_file(target) as temporary:
        nbformat.write(notebook, temporary)


def _with_parameters(source: str, parameters: Mapping[str, object]) -> str:
    """Return a cell of the form `a, b = 1, 2` with other values; others of its names stay."""
    (assignment,) = ast.parse(source).body
    values = {
        name.id: ast.literal_eval(value)
        for name, value in zip(assignment.targets[0].elts, assignment.value.elts, strict=True)
    }
    values |= {name: value for name, value in parameters.items() if name in values}
    return f"{', '.join(values)} = {', '.join(map(repr, values.values()))}"


def _run_cells(client: NotebookClient, source: Path) -> None:
    """Run all cells; a failing one, a dead kernel and Ctrl-C give the errors of `execute`."""
    try:
        with _progress_of_kernels() as inherited:
            # What a cell prints on standard error is kept all the same.
            client.execute(stderr=subprocess.DEVNULL, **inherited)
    except Exception as error:
        # nbclient answers Ctrl-C by ending its kernel, and fails in several ways without it.
        if hasattr(client, "_async_cleanup_kernel_future"):
            raise KeyboardInterrupt from None
        if isinstance(error, DeadKernelError):
            raise InputError(
                f"{source}: its kernel died; memory may have run out: close other programs"
            ) from None
        if not isinstance(error, CellExecutionError):
            raise
        last = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
        raise InputError(f"{source}: a cell failed: {last}") from None


def export(
    notebooks: Sequence[Path],
    folder: Path,
    name: str,
    about: str,
    left_out: Set[str] = frozenset(),
) -> tuple[Path, Path]:
    """Bind executed notebooks, in this order, into a PDF and an HTML file.

    Args:
        notebooks: executed; each begins with a first-level heading, its title. What cells tagged
            with one of `ABSTRACT` show stands on the first page; those tagged `REPEATED` are bound
            from the first notebook alone.
        folder: where `NAME.pdf` and `NAME.html` are stored, and their figures.
        name: of the files, without ending.
        about: a line below the title.
        left_out: tags of cells that are not bound.

    Returns:
        the PDF and the HTML file.
    """
    figures = folder / name
    read = {notebook.stem: nbformat.read(notebook, as_version=4) for notebook in notebooks}
    text = "\n\n".join(
        _markdown(name, content, figures, left_out | ({REPEATED} if number else set()))
        for number, (name, content) in enumerate(read.items())
    )
    abstract = _abstract(read.values(), figures)
    html, pdf = folder / f"{name}.html", folder / f"{name}.pdf"
    extra = [f"--resource-path={figures}", f"--metadata=title:{TITLE}"]
    metadata = figures / "metadata.json"
    # Without a line break at its end pandoc takes a value for one paragraph, tables included.
    write_json(metadata, {"abstract": f"{abstract}\n", "subtitle": about})
    _write_page(text, html, [*extra, f"--metadata-file={metadata}"])
    parts = {"title": TITLE, "subtitle": about}
    for part, markdown in (("abstract", abstract), ("body", text)):
        parts[part] = to_typst(markdown, figures)
    typeset(parts, figures, pdf)
    return pdf, html


def _write_page(text: str, html: Path, extra: list[str]) -> None:
    """Write one HTML file that holds everything it shows."""
    with new_file(html) as temporary:
        pypandoc.convert_text(
            text,
            "html",
            format=MARKDOWN,
            outputfile=str(temporary),
            extra_args=[
                *extra,
                "--standalone",
                "--embed-resources",
                "--toc",
                "--toc-depth=2",
                f"--include-in-header={ASSETS / 'report.css.html'}",
            ],
        )


def _markdown(name: str, notebook: nbformat.NotebookNode, folder: Path, left_out: Set[str]) -> str:
    """Return a notebook without the cells of some tags, of code the recipe; store its figures."""
    shown = copy.deepcopy(notebook)
    for cell in shown.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and RECIPE not in tags:
            cell.metadata["tags"] = [*tags, CODE_LEFT_OUT]
    exporter = MarkdownExporter()
    exporter.register_preprocessor(
        TagRemovePreprocessor(
            enabled=True, remove_cell_tags=set(left_out), remove_input_tags={CODE_LEFT_OUT}
        )
    )
    resources = {"unique_key": name, "output_files_dir": name}
    text, resources = exporter.from_notebook_node(shown, resources)
    store_figures(resources["outputs"], folder)
    return text


def _abstract(notebooks: Iterable[nbformat.NotebookNode], folder: Path) -> str:
    """Return as Markdown what the cells tagged with one of `ABSTRACT` show, in that order."""
    return "\n\n".join(
        text
        for tag in ABSTRACT
        for notebook in notebooks
        for text in _shown(tagged_outputs(notebook, tag) or (), folder / f"abstract-{tag}.png")
    )


def _shown(outputs: Iterable[dict], figure: Path) -> Iterator[str]:
    for data in outputs:
        if "image/png" in data:
            with new_file(figure) as temporary:
                temporary.write_bytes(b64decode(data["image/png"]))
            yield f"![]({figure.name})"
        elif "text/markdown" in data:
            yield data["text/markdown"]


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
            cannot, and is left out; so is the one about a second set where none is named, and all
            of them where the images are generated.
    """
    files = sorted(folder.glob("[0-9]*.ipynb"))
    if dataset != config.SYNTHETIC:
        files += sorted(folder.glob("A[0-9]*.ipynb"))
    about = {file: file.stem.split("_", 1)[-1] for file in files}
    if dataset and not config.variable("OTHER"):
        files = [file for file in files if about[file] != SECOND_SET]
    return [f for f in files if about[f] not in registry.DATASETS or dataset in (None, about[f])]


def report(folder: Path, parameters: Mapping[str, object] | None) -> list[Path]:
    """Bind the notebooks as they are committed, then execute them here and bind that.

    Args:
        folder: where everything is stored: `study.pdf` and `.html` from the committed notebooks,
            `live.pdf` and `.html` from what this machine has just computed.
        parameters: for every notebook, the `dataset` among them: a name, or a folder's whole path.
            None to execute each in place, with its own, for committing: they are then bound as the
            study.

    Returns:
        the PDFs and HTML files.

    Raises:
        InputError: if there are no notebooks or one fails.
    """
    dataset = parameters["dataset"] if parameters else None
    sources, study = (chapters(PATHS.notebooks, name) for name in (dataset, None))
    if not sources:
        raise InputError(f"{PATHS.notebooks}: no notebooks here; restore them with «git checkout»")
    about = "The study, from the notebooks as they are committed"
    if edited := runtime.changed(PATHS.notebooks):
        about = f"From the notebooks as they are here; edited since they were committed: {edited}"
    bound = export(study, folder, "study", about) if dataset else ()
    executed = [folder / source.name if dataset else source for source in sources]
    with temporary_variable("COMMIT", "" if dataset else "yes"):
        for source, target in zip(sources, executed, strict=True):
            print(f"{source.name} …", flush=True)
            execute(source, target, parameters)
    if not dataset:
        for source in sorted(PATHS.notebooks.glob("answers.ipynb")):
            execute(source, source)
        return list(export(study, folder, "study", about))
    about = f"Computed on this machine, on {printable(dataset)}; commit {runtime.commit()}"
    left_out = set() if config.variable("OTHER") else {SECOND_SET}
    return [*bound, *export(executed, folder, "live", about, left_out)]
