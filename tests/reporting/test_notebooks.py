"""The committed notebooks: clean, true to the results files, and executable anywhere."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from conftest import CLASSES, PROJECT, command, process_environment
from pypdf import PdfReader

from fruitveg_tl.reporting import notebook as shared
from fruitveg_tl.reporting import report

FILES = report.chapters(PROJECT / "notebooks", None)
MODELS = [file for file in FILES if file.name[:2] in ("02", "03", "04")]
WITH_RESULTS = [file for file in FILES if file.name[:2] in ("05", "A1", "A4", "A5")]
PARAMETERS = 'dataset, seed, size, epochs, resplit = "grocery", 0, None, None, 0'
CHAPTERS = (
    "The images",
    "VGG16",
    "ResNet50",
    "MobileNetV2",
    "Comparison and findings",
    "Appendix 1",
    "Appendix 2",
    "Appendix 3",
    "Appendix 5",
)


def code_cells(file):
    return [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]


def markdown_outputs(cell):
    return [o.data["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]


def tags(cell):
    return cell.metadata.get("tags", ())


def test_there_are_five_and_their_appendices():
    names = ["01", "02", "03", "04", "05", "A1", "A2", "A3", "A4", "A5"]
    assert [file.name[:2] for file in FILES] == names
    for file in FILES:
        (parameters,) = (cell for cell in code_cells(file) if "parameters" in tags(cell))
        assert parameters.source == PARAMETERS


@pytest.mark.parametrize(
    "file", [*FILES, PROJECT / "notebooks" / "answers.ipynb"], ids=lambda file: file.stem
)
def test_executed_in_order_without_errors_or_noise(file):
    cells = code_cells(file)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.source.strip()
        assert not [o for o in cell.outputs if o.output_type in ("error", "stream")], cell.source
        assert len(cell.source.splitlines()) <= 25
    assert file.stat().st_size < 1_000_000


def test_all_name_one_clean_commit_and_one_set_of_images():
    facts = set()
    for file in FILES:
        text = "\n".join(text for cell in code_cells(file) for text in markdown_outputs(cell))
        digest = re.search(r"\| SHA-256 +\| ([0-9a-f]{64}) \|", text)
        commit = re.search(r"\| commit +\| ([0-9a-f]{40}) ", text)
        assert digest and commit, file
        facts.add((digest[1], commit[1]))
    assert len(facts) == 1


def test_prose_has_no_typed_results():
    """Numbers in Markdown cells would not change with the results."""
    for file in FILES:
        for cell in nbformat.read(file, 4).cells:
            if cell.cell_type == "markdown":
                found = re.findall(r"\d+\.\d+|\d+(?= ?%)", cell.source)
                assert not [n for n in found if n != "95"], cell.source


def test_model_notebooks_differ_in_their_backbone_and_what_it_teaches():
    names = re.compile(r"(0\d_)?(VGG16|ResNet50|MobileNetV2|vgg16|resnet50|mobilenet_?v2)")
    read = [nbformat.read(file, 4).cells for file in MODELS]
    for kind, most in (("code", 0), ("markdown", 4)):
        sources = [
            [names.sub("X", cell.source) for cell in cells if cell.cell_type == kind]
            for cells in read
        ]
        different = [texts for texts in zip(*sources, strict=True) if len(set(texts)) > 1]
        assert len(different) == most  # title, backbone, BatchNorm, questions


@pytest.mark.parametrize("file", WITH_RESULTS, ids=lambda file: file.stem)
def test_numbers_are_those_of_the_results_files(file, monkeypatch):
    """Run again, on the committed results alone, every cell that needs nothing else."""
    shown = []

    def keep_text(thing):
        if isinstance(thing.data, str):  # of a figure, bytes
            shown.append(thing.data)

    monkeypatch.setattr(shared, "display", keep_text)
    names = {}
    compared = 0
    for cell in code_cells(file):
        if "parameters" in tags(cell) or "configure_experiment(" in cell.source:
            exec(cell.source, names)
        elif "results" in tags(cell):
            shown.clear()
            exec(cell.source, names)
            assert shown == markdown_outputs(cell)
            compared += len(shown)
    assert compared >= (3 if file.name.startswith("A") else 8)  # an appendix is shorter


def test_all_run_on_any_images(miniature):
    home, environment = miniature
    options = ("--dataset", str(home.parent / "images"), "--size", "32", "--epochs", "1")
    done = command("report", *options, home=home, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    files = [
        home / "report" / name for name in ("study.pdf", "study.html", "live.pdf", "live.html")
    ]
    assert done.stdout.splitlines()[-4:] == [str(file) for file in files]
    pdf = files[2]
    pages = PdfReader(pdf).pages
    text = "\n".join(page.extract_text() for page in pages)
    sections = ("Class balance", "Confusion matrix", "Where the network looks", "Findings")
    for heading in (*CHAPTERS, *sections, *CLASSES):
        assert heading in text
    for source in ("Tiny ImageNet (bundled)", "random weights"):
        assert source in re.sub(r"\s+", " ", text)
    assert "not measured" not in text.lower() and "Appendix 4" not in text
    assert not (home / "figures").exists() and not (home / "data" / "results").exists()
    folder = home / "data" / "runs" / "figures" / "images"
    figures = sorted(path.name for path in folder.iterdir())
    assert len(figures) >= 20 and "vgg16-confusion.png" in figures
    assert sum(len(page.images) for page in pages) >= len(figures)


@pytest.mark.parametrize("name", ["02_vgg16", "05_comparison"])
def test_a_notebook_runs_in_jupyterlab(miniature, tmp_path, browser, name):
    """Open it in a browser, choose Run All, wait for the last cell."""
    home, environment = miniature
    file = home / "notebooks" / f"{name}.ipynb"
    with jupyterlab(home, environment) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{address}/lab/tree/{file.name}?token=test", timeout=60_000)
        # The kernel has been found; its first label may be hidden in a narrow toolbar.
        page.wait_for_selector("text=Python 3 >> visible=true", timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        for _ in range(450):  # alone, it computes every run of the notebook first
            page.wait_for_timeout(2000)
            page.keyboard.press("Control+s")
            try:
                cells = code_cells(file)
            except nbformat.reader.NotJSONError:  # JupyterLab is writing it
                continue
            outputs = [output for cell in cells for output in cell.outputs]
            failed = [output for output in outputs if output.output_type == "error"]
            if failed or (all(cell.execution_count for cell in cells) and cells[-1].outputs):
                break
        page.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.png")
        page.get_by_role("menuitem", name="File", exact=True).click()
        page.get_by_text("Save and Export Notebook As").hover()
        page.get_by_text("Typst_pdf").wait_for()
    assert not failed
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "images" in str(outputs)


def test_jupyterlab_hands_out_a_pdf(miniature):
    """What the menu "Save and Export Notebook As" asks for."""
    home, environment = miniature
    with jupyterlab(home, environment) as address:
        query = "download=true&token=test"
        file = "01_exploration.ipynb"
        with urllib.request.urlopen(f"{address}/nbconvert/typst_pdf/{file}?{query}") as answer:
            assert answer.headers.get_content_type() == "application/pdf"
            assert answer.read(4) == b"%PDF"


@contextmanager
def jupyterlab(home, environment):
    """Serve JupyterLab below `home`; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.port": port,
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": home / "notebooks",
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "test",
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())],
        env=process_environment(home, **environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token=test")
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_every_question_is_answered():
    answers = nbformat.read(PROJECT / "notebooks" / "answers.ipynb", 4).cells
    text = "\n".join(cell.source for cell in answers if cell.cell_type == "markdown")
    chapters = dict(re.findall(r"^## (0\d).*?\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    for file in FILES[1:5]:
        last = nbformat.read(file, 4).cells[-1].source
        asked = re.findall(r"^\d\. ", last, re.MULTILINE) or re.findall(r"\?", last)
        answered = re.findall(r"^\*\*(?:\d\.|.*\?)", chapters[file.name[:2]], re.MULTILINE)
        assert "## Question" in last and len(asked) == len(answered) > 0, file
