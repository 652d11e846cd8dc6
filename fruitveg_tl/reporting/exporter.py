"""Notebooks to PDF without LaTeX: pandoc converts Markdown to Typst, which typesets it.

nbconvert registers the exporter as `typst_pdf`; JupyterLab lists it under "Save and Export
Notebook As".
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pypandoc
import typst
from nbconvert import Exporter, MarkdownExporter

from fruitveg_tl.utils.storage import new_file

ASSETS = Path(__file__).with_name("assets")
COVER = "// --- cover"  # the line of `report.typ` where the first page of a report begins
# Without `implicit_figures`, alternative texts do not become captions and figures do not float.
# Without `smart`, two hyphens in a name stay two hyphens.
MARKDOWN = "markdown-implicit_figures-raw_html-smart+tex_math_dollars"


class TypstPDFExporter(Exporter):
    """`jupyter nbconvert --to typst_pdf NOTEBOOK`, with `--no-input` without code."""

    export_from_notebook = "PDF without LaTeX (Typst)"
    output_mimetype = "application/pdf"
    file_extension = ".pdf"

    def from_notebook_node(
        self, nb: nbformat.NotebookNode, resources: dict | None = None, **options: Any
    ) -> tuple[bytes, dict]:
        """Return the PDF, figures included, and `resources` without figures."""
        nb, resources = super().from_notebook_node(nb, resources, **options)
        markdown = MarkdownExporter(config=self.config)
        text, resources = markdown.from_notebook_node(nb, resources, **options)
        with TemporaryDirectory() as name:
            folder = Path(name)
            store_figures(resources["outputs"], folder)
            pdf = folder / "notebook.pdf"
            title = resources.get("metadata", {}).get("name", "notebook")
            typeset({"title": title, "body": to_typst(text, folder)}, folder, pdf)
            content = pdf.read_bytes()
        # With further outputs, JupyterLab would send a ZIP archive.
        return content, resources | {"outputs": {}, "output_extension": ".pdf"}


def store_figures(outputs: Mapping[str, bytes], folder: Path) -> None:
    """Write the figures of an exported notebook below a folder."""
    for path, content in outputs.items():
        with new_file(folder / path) as temporary:
            temporary.write_bytes(content)


def to_typst(markdown: str, figures: Path) -> str:
    """Return Markdown as Typst; paths of figures start at `figures`."""
    extra = [f"--resource-path={figures}"]
    return pypandoc.convert_text(markdown, "typst", format=MARKDOWN, extra_args=extra)


def typeset(parts: Mapping[str, str], folder: Path, pdf: Path) -> None:
    """Typeset `report.typ` with its «placeholders» filled in by `parts`, which are Typst.

    Without the part `abstract` there is no title page. `folder` holds the figures.
    """
    content = (ASSETS / "report.typ").read_text()
    if "abstract" not in parts:
        content = content.split(COVER)[0] + "\n«body»"
    for part, value in parts.items():
        content = content.replace(f"«{part}»", value)
    source = folder / "report.typ"
    with new_file(source) as temporary:
        temporary.write_text(content)
    with new_file(pdf) as temporary:
        typst.compile(source, output=temporary, root=folder)
