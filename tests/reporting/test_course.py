"""Notebooks 02 to 04 do the work themselves, and `train` does the same."""

from dataclasses import replace

import nbformat
import numpy as np
import pytest
from conftest import PROJECT

from fruitveg_tl.config import FINETUNED, PATHS, PROBE
from fruitveg_tl.models import weights
from fruitveg_tl.run import train

FILES = sorted((PROJECT / "notebooks").glob("0[234]_*.ipynb"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def code_cells(file, tag=None):
    """Return the sources of a notebook's code cells, or of those with a tag."""
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    return [c.source for c in cells if tag in (None, *c.metadata.get("tags", ()))]


def run_cells(file, images, names=None, every=False):
    """Run a notebook's code cells on small images: all, or those until `train` has been called."""
    names = {} if names is None else names
    (parameters,) = code_cells(file, "parameters")
    small = f"dataset, seed, size, epochs, resplit = {str(images)!r}, 0, 32, 2, 0"
    for source in code_cells(file):
        exec(small if source == parameters else source, names)
        if source.startswith("run = train(") and not every:
            break
    return names


@pytest.fixture(autouse=True)
def bundled(home, monkeypatch):
    """Start from the bundled weights, as where there is no network."""

    def unreachable(backbone):
        raise weights.Unreachable

    monkeypatch.setattr(PATHS, "weights", PROJECT / "data" / "weights")
    monkeypatch.setattr(weights, "_keras_file", unreachable)


def fits():
    return sorted(folder.name for folder in (PATHS.cache / "fits").glob("[0-9a-f]*"))


@every_file
def test_a_notebook_builds_freezes_fits_unfreezes_and_fits(file):
    text = "\n".join(code_cells(file, "recipe"))
    for call in (
        "keras.applications.",
        "weights=",
        "preprocess_input",
        ".trainable = False",
        "GlobalAveragePooling2D",
        "layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)",
        "metrics.evaluate(",
    ):
        assert call in text
    assert text.count(".compile(") == text.count(".fit(") == 2


@every_file
def test_a_notebook_and_train_give_the_same_numbers(file, images, home, eager, monkeypatch):
    """Twice in one kernel, then by `train` from nothing: equal to the last bit."""
    every = "02" in file.stem
    names = run_cells(file, images, every=every)
    first, kept = names["probabilities"], fits()
    assert len(kept) == 2  # `train`, called by the notebook, has found both
    again = run_cells(file, images, names, every)["probabilities"]
    assert fits() == kept
    monkeypatch.setenv("FRUITVEG_HOME", str(home.with_name("other home")))
    run = train(names["images"], names["source"], names["recipe"])
    assert fits() == kept
    for stage in (PROBE, FINETUNED):
        np.testing.assert_array_equal(first[stage], again[stage])
        stored = run.study.array(f"{run.name}/{stage.replace(' ', '-')}/test")
        np.testing.assert_array_equal(first[stage].astype(np.float16), stored)
        assert run.scores[stage] == pytest.approx(names["scores"][stage], abs=1e-12)


CHANGES = {
    "finetune_rate": 1e-3,
    "weight_decay": 0.5,
    "finetune_epochs": 3,
    "batch_size": 4,
    "mixup": 0.1,
    "views": 2,
    "logit_adjustment": 0.25,
    "probe_rate": 1e-2,
    "probe_epochs": 3,
    "patience": 2,
    "boundary": "block_12_add",
    "crop": 0.5,
    "seed": 1,
}


EDITS = {
    "a layer more": ("(base.output)", "(keras.layers.Activation('relu')(base.output))"),
    "BatchNorm trained": ("not isinstance(layer, keras.layers.BatchNormalization)", "True"),
    "another optimizer": ("optimizers.AdamW", "optimizers.Adam"),
}


def test_every_line_of_the_recipe_makes_another_fit_and_changed_back_the_old_one(
    images, home, eager
):
    (file,) = (file for file in FILES if "mobilenetv2" in file.stem)
    names, cells = run_cells(file, images), code_cells(file, "recipe")
    until = next(i for i, source in enumerate(cells) if "metrics.evaluate(" in source)

    def keys(recipe, edit=("", "")):
        """Build again by a recipe, and return the keys of both fits; nothing is trained."""
        fresh = names | {"recipe": recipe, "seed": recipe.seed}
        for source in cells[1:until]:
            text = source.replace(*edit) if edit[0] else source
            text = text.replace("head.fit(", "dict(").replace("fast.fit(", "dict(")
            exec(text.replace("    batches,\n    validation_data", "    validation_data"), fresh)
        return fresh["probe"].key, fresh["tuned"].key

    recipe = names["recipe"]
    usual = keys(recipe)
    assert usual[0] == names["probe"].key
    found = {}
    for name, value in CHANGES.items():
        assert getattr(recipe, name) != value
        found[name] = keys(replace(recipe, **{name: value}))
    found |= {name: keys(recipe, edit) for name, edit in EDITS.items()}
    assert all(both[1] != usual[1] for both in found.values())
    assert len(set(found.values())) == len(found)
    assert keys(recipe) == usual
