"""Bind the notebooks, as committed and as executed here, into PDF and HTML files.

nbconvert converts executed notebooks to Markdown, keeping only the code that builds and trains;
pandoc converts that to HTML and to Typst, which typesets the PDF (see `exporter`).
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
from fruitveg_tl.reporting.exporter import ASSETS, MARKDOWN, store_figures, to_typst, typeset
from fruitveg_tl.reporting.readme import tagged_outputs
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import new_file, write_json

TITLE = "Transfer learning on images of fruit and vegetables"
ABSTRACT = (
    "answer",
    "models",
    "metrics",
    "scores",
)  # tags of cells whose output forms the abstract
NEEDS = "needs"  # in a notebook's metadata: the images without which it makes no sense
SECOND_SET = "second_set"  # the images of FRUITVEG_OTHER; also a tag of cells about them
RECIPE = "recipe"  # tag of cells that build and train: the report shows their code
CODE_LEFT_OUT = "code left out"
PARAMETERS = "parameters"  # tag of the cell whose values `report` sets
REPEATED = "repeated"  # tag of cells that every notebook repeats


def execute(source: Path, target: Path, parameters: Mapping[str, object] | None = None) -> None:
    """Execute a notebook in a fresh kernel and store it with its outputs; `target` may be `source`.

    The kernel has the working directory of this process. `parameters` are new values for the
    notebook's cell tagged `parameters`. Raises InputError if a cell fails or the kernel dies; then
    `target` stays unchanged. Raises KeyboardInterrupt after Ctrl-C, once the kernel has ended.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if parameters and PARAMETERS in cell.metadata.get("tags", ()):
            cell.source = _with_parameters(cell.source, parameters, source)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(Path.cwd())}},
        record_timing=False,
        # After Ctrl-C a normal shutdown may hang: the interrupted cell starts a second one.
        shutdown_kernel="immediate",
    )
    _run_cells(client, source)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_download(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        **{name: value for name, value in notebook.metadata.items() if name == NEEDS},
    }
    with new_file(target) as temporary:
        nbformat.write(notebook, temporary)


def _with_parameters(code: str, parameters: Mapping[str, object], file: Path) -> str:
    """Return a cell of the form `a, b = 1, 2` with the values of `parameters`."""
    try:
        (assignment,) = ast.parse(code).body
        pairs = zip(assignment.targets[0].elts, assignment.value.elts, strict=True)
        values = {name.id: ast.literal_eval(value) for name, value in pairs}
    except (SyntaxError, ValueError, AttributeError):
        raise InputError(
            f"{printable(file)}: its cell tagged {PARAMETERS} must be one line, a, b = 1, 2; "
            "restore it with «git checkout»"
        ) from None
    values |= {name: value for name, value in parameters.items() if name in values}
    return f"{', '.join(values)} = {', '.join(map(repr, values.values()))}"


def _run_cells(client: NotebookClient, source: Path) -> None:
    """Run all cells; raise the errors of `execute`."""
    try:
        with _progress_of_kernels() as inherited:
            # The notebook still stores the cells' own standard error.
            client.execute(stderr=subprocess.DEVNULL, **inherited)
    except Exception as error:
        # At Ctrl-C nbclient ends its kernel, then fails in several ways.
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
    """Bind executed notebooks, in this order, into NAME.pdf and NAME.html, and return both.

    Each notebook begins with its title, a first-level heading. Outputs of cells tagged with one of
    `ABSTRACT` form the abstract; cells tagged `REPEATED` are bound only from the first notebook.
    `about` is the subtitle; `left_out` holds tags of cells to omit.
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
    # Without a final line break, pandoc parses a value as one paragraph, tables included.
    write_json(metadata, {"abstract": f"{abstract}\n", "subtitle": about})
    _write_page(text, html, [*extra, f"--metadata-file={metadata}"])
    parts = {"title": TITLE, "subtitle": about}
    for part, markdown in (("abstract", abstract), ("body", text)):
        parts[part] = to_typst(markdown, figures)
    typeset(parts, figures, pdf)
    return pdf, html


def _write_page(text: str, html: Path, extra: list[str]) -> None:
    """Write one self-contained HTML file."""
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
    """Return a notebook as Markdown, with only the recipe's code; store its figures."""
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
    """Return as Markdown the outputs of the cells tagged with one of `ABSTRACT`, in that order."""
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
    """Return whether an output is only Keras' download message."""
    lines = output.get("text", "").splitlines()
    return output.output_type == "stream" and all(
        line.startswith("Downloading data from ") for line in lines if line.strip()
    )


@contextmanager
def _progress_of_kernels() -> Iterator[dict]:
    """Share standard error with kernels; yield the arguments that let them inherit it."""
    if os.name == "nt":  # Windows processes cannot inherit it
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

    For a `dataset`, those that need other images are omitted (`NEEDS`), and all appendices for the
    synthetic set. None keeps all.
    """
    files = sorted(folder.glob("[0-9]*.ipynb"))
    if dataset != config.SYNTHETIC:
        files += sorted(folder.glob("A[0-9]*.ipynb"))
    there = {dataset, None} | ({SECOND_SET} if config.variable("OTHER") else set())
    needs = {file: nbformat.read(file, 4).metadata.get(NEEDS) for file in files}
    return [file for file in files if dataset is None or needs[file] in there]


def report(folder: Path, parameters: Mapping[str, object] | None) -> list[Path]:
    """Bind the committed notebooks, then execute them here and bind the results; return the files.

    Writes `study.pdf` and `.html` from the committed notebooks, `live.pdf` and `.html` from this
    execution. Every notebook takes `parameters`, including `dataset`: a name, or a folder's
    absolute path. None executes each in place with its own parameters, and binds them as the study.
    Raises InputError if there is no notebook, or one fails.
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
