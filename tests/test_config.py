import ast
import re
from dataclasses import fields

import pytest
from conftest import PROJECT

from fruitveg_tl import config
from fruitveg_tl.config import RunConfig, Selection, ablations_in_words, divided, recipe
from fruitveg_tl.utils.errors import InputError


def test_every_setting_is_explained_and_its_default_passes_its_own_check():
    for field in config.settings():
        assert field.metadata["help"] and field.metadata["kind"] in (str, int, float, bool)
        assert field.metadata["ablation"] in (True, False)
    RunConfig("vgg16")
    Selection("images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "64"}, "size: '64' is no int"),
        ({"crop": 1.5}, "crop: 1.5 is too large; at most 1"),
        ({"mixup": float("nan")}, "mixup: nan is too small"),
        ({"label_level": "medium"}, "label_level: 'medium' is unknown; choose coarse or fine"),
        ({"resplit": "yes"}, "resplit: 'yes' is no int"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_what_does(change, message):
    which, how = divided({"dataset": "images", "backbone": "vgg16"} | change)
    with pytest.raises(InputError, match=message):
        Selection(**which), RunConfig(**how)


def test_ablations_are_recorded_where_they_are_in_use_and_other_settings_always():
    usual = recipe("images")
    plain = RunConfig("vgg16").to_dict()
    assert plain.keys() == {f.name for f in fields(RunConfig) if not f.metadata["ablation"]}
    assert ablations_in_words(plain, usual) == ""
    used = RunConfig("vgg16", crop=0.875, probe_first=False).to_dict()
    assert used.keys() - plain.keys() == {"probe_first"}
    assert ablations_in_words(used, usual) == "probe_first False"
    assert ablations_in_words(used | {"train_images_per_class": 2}, usual) == (
        "train_images_per_class 2, probe_first False"
    )
    assert RunConfig(**used) == RunConfig("vgg16", crop=0.875, probe_first=False)


def test_a_part_of_the_recipe_that_is_off_is_an_ablation_where_the_recipe_has_it():
    def told(dataset, **changes):
        return ablations_in_words(changes, recipe(dataset))

    assert told("images", mixup=0.0, resplit=2) == "mixup 0.0"
    assert told("images", logit_adjustment=0.0) == told("synthetic", mixup=0.0) == ""
    assert told("grocery", views=0, logit_adjustment=0.0) == "views 0, logit_adjustment 0.0"
    assert told("grocery", size=128, finetune_epochs=4) == ""


def test_a_variable_that_nothing_reads_is_refused_with_a_guess(monkeypatch):
    config.refuse_unknown_variables()
    monkeypatch.setenv("FRUITVEG_DATASETS", "fine")
    with pytest.raises(InputError, match=r"FRUITVEG_DATASETS: unknown.*FRUITVEG_DATASET"):
        config.refuse_unknown_variables()


def test_the_table_of_variables_is_the_declared_one():
    text = (PROJECT / "notebooks" / "README.md").read_text()
    assert dict(re.findall(r"^\| `(FRUITVEG_\w+)` \| (.*) \|$", text, re.MULTILINE)) == (
        config.VARIABLES
    )


def test_the_environment_is_read_in_one_module_and_keras_imported_in_one():
    for file in (PROJECT / "fruitveg_tl").rglob("*.py"):
        text = file.read_text()
        if file.name != "config.py":
            assert not ("environ" in text and "FRUITVEG_" in text), file
        if file.name != "backend.py":
            imported = {
                alias.name
                for node in ast.parse(text).body
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert imported.isdisjoint({"keras", "tensorflow"}), file
