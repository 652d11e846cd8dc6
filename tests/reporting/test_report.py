import subprocess
import sys

import nbformat
import pytest
from conftest import assert_fits_screens
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pypdf import PdfReader

from fruitveg_tl import cli
from fruitveg_tl.config import PATHS
from fruitveg_tl.reporting import report
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError

FIGURE = """
from matplotlib.figure import Figure
from IPython.display import Image, Markdown, display
import sys
figure = Figure(figsize=(3, 2))
figure.subplots().plot([1, 2])
figure.savefig("f.png")
display(Image(filename="f.png"))
display(Markdown("Accuracy is **0.123**, $x^2$ < 3."))
display(Markdown("| a | b |\\n|---|---|\\n| 1 | leek |"))
print("Downloading data from http://127.0.0.1/x", file=sys.stderr)
"""


def write(file, *cells):
    nbformat.write(new_notebook(cells=list(cells)), file)
    return file


@pytest.fixture(autouse=True)
def at_work(tmp_path, monkeypatch):
    """Kernels work where this process does, and write there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chapters(tmp_path):
    table = "| a | b |\n|---|---|\n| 1 | kiwi |"
    return [
        write(
            tmp_path / "01_one.ipynb",
            new_markdown_cell("# First chapter\n\n## A section"),
            new_code_cell(FIGURE, metadata={"tags": ["answer"]}),
        ),
        write(tmp_path / "02_two.ipynb", new_markdown_cell(f"# Second chapter\n\n{table}")),
    ]


def test_chapters_are_executed_and_bound(chapters, tmp_path):
    target = tmp_path / "out" / "01_one.ipynb"
    report.execute(chapters[0], target)
    cell = nbformat.read(target, 4).cells[1]
    assert cell.execution_count == 1
    assert [output.output_type for output in cell.outputs] == ["display_data"] * 3
    assert not nbformat.read(chapters[0], 4).cells[1].outputs

    pdf, html = report.export([target, chapters[1]], tmp_path / "out", "study", "As committed")
    assert (pdf.name, html.name) == ("study.pdf", "study.html")
    pages = PdfReader(pdf).pages
    text = "\n".join(page.extract_text() for page in pages)
    first = pages[0].extract_text()
    assert report.TITLE.split()[0] in first and "As committed" in first
    assert "0.123" in first and pages[0].images  # the abstract
    for expected in ("Contents", "First chapter", "A section", "Second chapter", "0.123", "kiwi"):
        assert expected in text
    assert "savefig" not in text and "Downloading" not in text
    assert text.count("0.123") == 2 and len(pages) == 1  # in the abstract and below; no empty page
    content = html.read_text()
    assert "<table" in content[: content.index("</header>")]  # the abstract's
    assert content.count("data:image/png;base64") == 2 and "Second chapter" in content
    assert 'src="http' not in content


def test_the_code_of_the_recipe_is_bound_and_no_other(tmp_path):
    tagged = {"metadata": {"tags": [report.RECIPE]}}
    cells = (new_code_cell("base.trainable = False", **tagged), new_code_cell("plot(1)"))
    chapter = write(tmp_path / "01_one.ipynb", new_markdown_cell("# One"), *cells)
    pdf, page = report.export([chapter], tmp_path / "out", "study", "As committed")
    for text in (PdfReader(pdf).pages[0].extract_text(), page.read_text()):
        assert "trainable" in text and "plot" not in text
    assert "tags" not in nbformat.read(chapter, 4).cells[2].metadata


@pytest.mark.parametrize("options", [(), ("--no-input",)])
def test_nbconvert_makes_a_pdf_of_any_notebook(chapters, tmp_path, options):
    report.execute(chapters[0], chapters[0])
    convert = [sys.executable, "-m", "nbconvert", "--to", "typst_pdf", *options]
    folder = tmp_path / "elsewhere"
    subprocess.run([*convert, f"--output-dir={folder}", chapters[0]], check=True)
    assert [file.name for file in folder.iterdir()] == ["01_one.pdf"]
    pages = PdfReader(folder / "01_one.pdf").pages
    text = "\n".join(page.extract_text() for page in pages)
    assert "First chapter" in text and "0.123" in text and "Contents" not in text
    assert ("savefig" in text) != bool(options)
    assert sum(len(page.images) for page in pages) == 1


def test_cells_that_do_not_apply_are_not_bound(tmp_path):
    section = new_markdown_cell("## A second set", metadata={"tags": [report.SECOND_SET]})
    chapter = write(tmp_path / "01_one.ipynb", new_markdown_cell("# First chapter"), section)
    _, whole = report.export([chapter], tmp_path / "out", "study", "As committed")
    _, page = report.export([chapter], tmp_path / "out", "live", "Here", {report.SECOND_SET})
    assert "A second set" in whole.read_text()
    assert "First chapter" in page.read_text() and "A second set" not in page.read_text()


def test_the_page_fits_a_screen_however_wide_its_tables(tmp_path, browser):
    wide = "| " + " | ".join(f"column number {n}" for n in range(30)) + " |"
    lines = ["# Chapter", "a_very_long_name_" * 20, wide, "|---" * 30 + "|", wide]
    chapter = write(tmp_path / "01_wide.ipynb", new_markdown_cell("\n\n".join(lines[:2])))
    notebook = nbformat.read(chapter, 4)
    notebook.cells += [new_markdown_cell("\n".join(lines[2:])), new_code_cell(FIGURE)]
    nbformat.write(notebook, chapter)
    report.execute(chapter, chapter)
    _, page = report.export([chapter], tmp_path / "out", "study", "As committed")
    assert_fits_screens(browser, page)


def test_a_failing_cell_is_named_and_nothing_is_overwritten(tmp_path):
    source = write(tmp_path / "01_bad.ipynb", new_code_cell("1 / 0"))
    before = source.read_bytes()
    with pytest.raises(InputError, match=r"01_bad\.ipynb: a cell failed: ZeroDivisionError"):
        report.execute(source, source)
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        ("os.getppid(), signal.SIGINT", pytest.raises(KeyboardInterrupt)),
        ("os.getpid(), signal.SIGKILL", pytest.raises(InputError, match=r"01_end\.ipynb: its")),
    ],
)
def test_a_signal_ends_a_notebook_in_one_line(target, outcome, tmp_path):
    cell = f"import os, signal, time\nos.kill({target})\ntime.sleep(60)"
    source = write(tmp_path / "01_end.ipynb", new_code_cell(cell))
    before = source.read_bytes()
    with outcome:
        report.execute(source, source)
    assert source.read_bytes() == before


def test_the_parameters_are_those_asked_for_or_in_place_the_notebooks_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    tagged = {"metadata": {"tags": [report.PARAMETERS]}}
    parameters = new_code_cell('dataset, seed, size = "my own", 7, None', **tagged)
    cells = (new_markdown_cell("# One"), parameters, new_code_cell("print(dataset, seed, size)"))
    source = write(tmp_path / "notebooks" / "01_one.ipynb", *cells)
    committed = source.read_bytes()
    files = report.report(tmp_path / "report", {"dataset": "it's", "size": 32, "epochs": 2})
    assert [file.name for file in files] == ["study.pdf", "study.html", "live.pdf", "live.html"]
    assert "it's 7 32" in html_text(tmp_path / "report" / "live.html")
    assert source.read_bytes() == committed
    study, page = report.report(tmp_path / "report", None)
    assert study.name == "study.pdf" and "my own 7 None" in html_text(page)
    assert "my own 7 None" in source.read_text()
    assert nbformat.read(source, 4).cells[1].source == parameters.source  # to the letter


def html_text(file):
    return " ".join(file.read_text().split()).replace("&#39;", "'")


def test_edited_notebooks_are_not_bound_as_committed_ones(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    source = write(tmp_path / "notebooks" / "01_one.ipynb", new_markdown_cell("# One"))
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    assert runtime.changed(PATHS.notebooks) == ""
    write(source, new_markdown_cell("# Two"))
    report.report(tmp_path / "report", {"dataset": "x"})
    assert "edited since they were committed: 01_one.ipynb" in html_text(
        tmp_path / "report" / "study.html"
    )


def test_without_a_data_set_the_report_is_on_the_embedded_one(monkeypatch):
    monkeypatch.delenv("FRUITVEG_DATASET", raising=False)
    assert cli.parser().parse_args(["report"]).dataset == "synthetic"
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["report", "--dataset", "mine", "--in-place"])


def test_an_appendix_about_other_images_is_left_out(tmp_path, monkeypatch):
    needs = {"A4_some.ipynb": "grocery", "A5_others.ipynb": "second_set"}
    names = ["01_a.ipynb", "02_b.ipynb", "A1_evidence.ipynb", *needs]
    (tmp_path / "README.md").touch()
    for name in reversed(names):
        metadata = {"needs": needs[name]} if name in needs else {}
        nbformat.write(new_notebook(metadata=metadata), tmp_path / name)
    everything = [tmp_path / name for name in names]
    monkeypatch.delenv("FRUITVEG_OTHER", raising=False)
    assert report.chapters(tmp_path, None) == everything
    assert report.chapters(tmp_path, "grocery") == everything[:-1]
    assert report.chapters(tmp_path, "mine") == everything[:-2]
    assert report.chapters(tmp_path, "synthetic") == everything[:2]
    monkeypatch.setenv("FRUITVEG_OTHER", "fruits-veges")
    assert report.chapters(tmp_path, "grocery") == everything
    assert report.chapters(tmp_path, "mine") == [*everything[:-2], everything[-1]]


def test_without_notebooks_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path))
    with pytest.raises(InputError, match="no notebooks here"):
        report.report(tmp_path / "report", {"dataset": "synthetic"})


@pytest.mark.parametrize("code", ['dataset = "grocery"', "a, b = 1, max(2, 3)", "a, b ="])
def test_parameters_of_another_form_are_named(tmp_path, code):
    cell = new_code_cell(code, metadata={"tags": ["parameters"]})
    file = tmp_path / "02_x.ipynb"
    nbformat.write(new_notebook(cells=[cell]), file)
    with pytest.raises(InputError, match=r"02_x\.ipynb: its cell tagged parameters must be"):
        report.execute(file, file, {"dataset": "synthetic"})
