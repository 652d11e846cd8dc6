"""The committed notebooks: clean, true to the results files, and executable anywhere."""

import ast
import os
import re
import shutil

import nbformat
import pytest
from conftest import CLASSES, PROJECT, command
from pypdf import PdfReader

from fruitveg_tl import notebook as shared

FILES = sorted((PROJECT / "notebooks").glob("[0-9]*.ipynb"))
MODELS = [file for file in FILES if file.name[:2] in ("02", "03", "04")]
CHAPTERS = ("The photographs", "VGG16", "ResNet50", "MobileNetV2", "Comparison and findings")


def code_cells(file):
    return [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]


def markdown_outputs(cell):
    return [o.data["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]


def tags(cell):
    return cell.metadata.get("tags", ())


def test_there_are_five():
    assert [file.name[:2] for file in FILES] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_executed_in_order_without_errors_or_noise(file):
    cells = code_cells(file)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.source.strip()
        assert not [o for o in cell.outputs if o.output_type in ("error", "stream")], cell.source
        assert len(cell.source.splitlines()) <= 25
    assert file.stat().st_size < 5_000_000


def test_all_five_name_one_clean_commit_and_one_set_of_photographs():
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


def test_model_notebooks_differ_in_their_backbone_alone():
    names = re.compile(r"VGG16|ResNet50|MobileNetV2|vgg16|resnet50|mobilenetv2")
    sources = [
        [names.sub("X", cell.source) for cell in nbformat.read(file, 4).cells] for file in MODELS
    ]
    different = {i for texts in zip(*sources, strict=True) for i in [texts] if len(set(texts)) > 1}
    # What the backbone is, and the study's settings.
    assert len(different) == 2


@pytest.mark.parametrize("file", [*MODELS, FILES[-1]], ids=lambda file: file.stem)
def test_numbers_are_those_of_the_results_files(file, monkeypatch):
    """Run again, on the committed results alone, every cell that needs nothing else."""
    shown = []
    monkeypatch.setattr(shared, "display", lambda markdown: shown.append(markdown.data))
    names = {}
    compared = 0
    for cell in code_cells(file):
        if "runs" in tags(cell):
            (names["done"],) = (ast.literal_eval(o.data["text/plain"]) for o in cell.outputs)
        elif "results" in tags(cell):
            shown.clear()
            exec(cell.source, names)
            assert shown == markdown_outputs(cell)
            compared += len(shown)
    assert compared >= 8


def test_all_five_run_on_any_photographs(photographs, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(PROJECT / "notebooks", home / "notebooks")
    closed = "http://127.0.0.1:9"  # where there is a network, no weights are downloaded
    done = command(
        "report",
        home=home,
        FRUITVEG_DATASET=str(photographs),
        FRUITVEG_SIZE="32",
        FRUITVEG_SEEDS="0",
        FRUITVEG_VIEWS="1",
        FRUITVEG_PROBE_EPOCHS="2",
        FRUITVEG_FINETUNE_EPOCHS="1",
        https_proxy=closed,
        http_proxy=closed,
        PATH=os.environ["PATH"],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == [
        str(home / "report" / "report.pdf"),
        str(home / "report" / "report.html"),
    ]
    pages = PdfReader(home / "report" / "report.pdf").pages
    text = "\n".join(page.extract_text() for page in pages)
    for chapter in CHAPTERS:
        assert chapter in text
    for section in ("Class balance", "Confusion matrix", "Where the network looked", "Findings"):
        assert section in text
    assert "random initialisation, not transfer" in re.sub(r"\s+", " ", text)
    assert all(name in text for name in CLASSES)
    figures = sorted(path.name for path in (home / "figures" / "photographs").iterdir())
    assert len(figures) >= 20 and "vgg16-confusion.png" in figures
    assert sum(len(page.images) for page in pages) >= len(figures)
