"""A network taken elsewhere gives the same answers there."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import load_run

from fruitveg_tl import cli, export
from fruitveg_tl.utils.errors import InputError


@pytest.mark.parametrize("name", export.FORMATS)
def test_every_format_gives_the_same_probabilities(finished, tmp_path, name):
    wanted = export.FORMATS[name]
    for package in filter(None, (wanted.package, wanted.runtime)):
        if not find_spec(package):
            pytest.skip(f"no {package} here; it is of the extra `export`")
    file, difference = export.export(load_run(finished), name, tmp_path / "out")
    assert file == tmp_path / "out" / wanted.file and file.exists()
    assert difference < 1e-5
    assert json.loads((file.parent / "classes.json").read_text()) == ["apple", "banana", "cherry"]
    assert json.loads((file.parent / "input.json").read_text())["shape"] == ["n", 32, 32, 3]


def test_what_differs_is_refused_and_nothing_is_left(finished, tmp_path, monkeypatch):
    wrong = replace(
        export.FORMATS["saved_model"], reader=lambda file: lambda x: np.full((len(x), 3), 0.9)
    )
    monkeypatch.setitem(export.FORMATS, "saved_model", wrong)
    with pytest.raises(InputError, match=r"saved_model: its probabilities differ by"):
        export.export(load_run(finished), "saved_model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    arguments = ["export", str(tmp_path / "out"), "--format", "onnx", "--run", str(finished)]
    assert cli.main(arguments) == 2
    assert "error: export to onnx needs tf2onnx: pip install tf2onnx" in capsys.readouterr().err


def test_a_folder_that_is_there_is_left_alone(finished, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="it exists; give a new folder"):
        export.export(load_run(finished), "saved_model", tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_the_command_line_knows_the_formats():
    assert tuple(export.FORMATS) == cli.EXPORT_FORMATS
