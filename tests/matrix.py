"""The whole report on every kind of images that users bring: `make matrix`, half an hour."""

import re
import shutil
import time
import unicodedata
from pathlib import Path

import nbformat
import pytest
from conftest import CLASSES, command, save_image, write_images
from pypdf import PdfReader

FOUND = ("error", "stream")  # types of output that no reader should see


def flat(root: Path) -> Path:
    for colour, name in enumerate(CLASSES):
        for i in range(20):
            save_image(root / name / f"{i}.jpg", colour, i)
    return root


def leaked(root: Path) -> Path:
    write_images(root, CLASSES, (8, 3, 0))
    shutil.copytree(root / "train", root / "test")
    return root


SETS = {
    "two classes": lambda root: write_images(root, CLASSES[:2]),
    "131 classes": lambda root: write_images(root, [f"class {n}" for n in range(131)], (2, 1, 1)),
    "one image a class and split": lambda root: write_images(root, CLASSES, (1, 1, 1)),
    "under 10 a class": lambda root: write_images(root, CLASSES, (5, 2, 2)),
    "TIFF only": lambda root: write_images(root, CLASSES, ending=".tif"),
    "flat folders": flat,
    "names in Chinese": lambda root: write_images(root, ("苹果", "香蕉", "樱桃")),
    "names of markup": lambda root: write_images(root, ("$a$ $$", "b|c*d`e`", "<i>f_g_h")),
    "names like numbers": lambda root: write_images(root, ("001", "1", "2.5")),
    "a test split wholly leaked": leaked,
    "a split missing": lambda root: write_images(root, CLASSES, (8, 0, 4)),
    "a relative path": lambda root: Path(write_images(root, CLASSES).name),
    "a path with spaces": lambda root: write_images(root.with_name("my own images"), CLASSES),
}
AS_ADVISED = {"a split missing": ("--resplit",)}  # by the message that refuses the set


@pytest.mark.parametrize("name", SETS)
def test_the_report(miniature, tmp_path, monkeypatch, name):
    home, environment = miniature
    shutil.copytree(home / "notebooks", tmp_path / "home" / "notebooks")
    monkeypatch.chdir(tmp_path)
    options = ("--dataset", str(SETS[name](tmp_path / "images")), "--size", "32", "--epochs", "1")
    start = time.perf_counter()
    asked = (*options, *AS_ADVISED.get(name, ()))
    done = command("report", *asked, home=tmp_path / "home", **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = PdfReader(tmp_path / "home" / "report" / "live.pdf").pages
    print(f"{name}: {time.perf_counter() - start:.0f} s, {len(pages)} pages")
    text = unicodedata.normalize("NFC", "\n".join(page.extract_text() for page in pages))
    assert "not measured" not in text.lower()
    for file in sorted((tmp_path / "home" / "report").glob("*.ipynb")):
        for cell in nbformat.read(file, 4).cells:
            # A glyph that no font has is a warning of Matplotlib's, on standard error.
            bad = [x for x in cell.get("outputs", ()) if x.output_type in FOUND]
            assert not bad, (file.name, cell.source, bad)
            shown = str(cell.get("outputs", ""))
            assert not re.search(r"\bnan\b", shown), (file.name, cell.source)
