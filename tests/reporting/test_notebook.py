import shutil
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import PROJECT
from nbformat.v4 import new_code_cell, new_notebook, new_output

from fruitveg_tl.config import PATHS
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import BACKBONES, BUNDLED, RANDOM
from fruitveg_tl.reporting import notebook, plots
from fruitveg_tl.utils.errors import InputError


def test_parameters_differ_from_the_recipe_and_then_one_seed_is_looked_at(home, monkeypatch):
    def asked(*parameters):
        found = notebook.configure_experiment(*parameters, seeds=5)
        return found.name, found.size, found.settings.get("finetune_epochs"), found.seeds

    assert asked("grocery") == ("grocery", 224, 10, (0,))  # no study below this home
    assert asked("synthetic", 2) == ("synthetic", 96, 4, (2,))
    assert asked("synthetic", 0, 48, 1) == ("synthetic", 48, 1, (0,))
    monkeypatch.setenv("FRUITVEG_HOME", str(PROJECT))
    assert asked("grocery") == ("grocery", 224, 10, (0, 1, 2, 3, 4))
    assert asked("grocery", 0, 96) == ("grocery", 96, 10, (0,))
    assert asked("grocery", 0, None, None, 1)[3] == (0,)
    with pytest.raises(InputError, match="size: 16 is too small; at least 32"):
        asked("grocery", 0, 16)


def test_a_relative_folder_starts_at_the_projects_root(images, home, monkeypatch, tmp_path):
    monkeypatch.setenv("FRUITVEG_HOME", str(images.parent))
    monkeypatch.chdir(tmp_path.parent)
    assert notebook.load_images(images.name).root == images
    assert notebook.load_images(str(images)).root == images
    assert notebook.configure_experiment(images.name).name == str(images)


@pytest.fixture
def experiment(quick):
    """The experiment that a notebook would make of the quick run."""
    how = {"size": 32, "views": 1, "batch_size": 8, "probe_epochs": 3, "finetune_epochs": 2}
    return notebook.Experiment(quick.images, None, how | {"weights": "random"}, (0,))


def test_finished_runs_are_used_and_a_lost_network_is_said(finished, experiment, monkeypatch):
    (run,) = experiment.run("vgg16")
    assert run.folder == finished and notebook.missing(experiment, run) is None
    (finished / "model.keras").unlink()
    lacks = notebook.missing(experiment, run)
    assert "Networks are not kept in Git" in lacks and "--backbones vgg16" in lacks
    assert "--seeds 0 1" in notebook.missing(replace(experiment, seeds=(0, 1)), run)
    gone = replace(experiment, name="grocery")
    monkeypatch.delenv("FRUITVEG_DATA", raising=False)
    assert "data --dataset grocery` fetches them" in notebook.missing(gone)
    assert experiment.run("vgg16")[0].folder == finished  # it is not trained again for that


def test_a_committed_study_is_read_whatever_this_machine_has(
    finished, quick, experiment, monkeypatch
):
    """No image is opened, no weights are looked for."""
    shutil.copytree(finished, PATHS.results / "images")
    shutil.rmtree(finished)
    shutil.rmtree(quick.images)
    monkeypatch.setenv("FRUITVEG_WEIGHTS", "nowhere")
    (run,) = experiment.run("vgg16")
    assert run.committed and experiment.classes == ["apple", "banana", "cherry"]
    assert experiment.origin.loc["runs"].item().startswith("committed")


def test_a_folder_that_bears_a_studys_name_is_not_taken_for_it(finished, quick, experiment):
    shutil.copytree(finished, PATHS.results / "images")
    assert experiment.committed
    image = Path(quick.images) / "test" / "apple" / "0.jpg"
    image.write_bytes((image.parent / "1.jpg").read_bytes())
    other = replace(experiment)
    assert not other.committed and not other.run("vgg16")[0].committed


def test_what_this_machine_computed_replaces_the_committed_where_it_has_all_seeds(
    finished, quick, experiment
):
    both = replace(experiment, seeds=(0, 1))
    for folder in (finished, quick.train(seed=1).folder):
        shutil.copytree(folder, PATHS.results / folder.name)
    assert [run.committed for run in both.run("vgg16")] == [False, False]
    shutil.rmtree(finished)
    assert [run.committed for run in both.run("vgg16")] == [True, True]  # never a mixture


def test_a_cell_that_lacks_something_shows_what_was_committed(home, monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", shown.append)
    cell = new_code_cell("show(1)", metadata={"tags": ["figure"]})
    image = b64encode(b"a picture").decode()
    texts = ("> an earlier reason", "**5**")
    cell.outputs = [new_output("display_data", {"text/markdown": text}) for text in texts]
    cell.outputs.append(new_output("display_data", {"image/png": image, "text/plain": "x"}))
    PATHS.notebooks.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[cell]), PATHS.notebooks / "x.ipynb")
    monkeypatch.setattr(notebook, "Image", lambda data: data)
    notebook.show_committed("It is gone.", "x", "figure")
    assert shown[0].data.startswith("> It is gone.") and shown[1].data == "**5**"
    assert shown[2:] == [b"a picture"]


def test_the_second_set_is_the_one_that_a_variable_names(images, home, monkeypatch):
    experiment = notebook.Experiment("grocery", "fine", {"size": 32}, (0,))
    assert notebook.second_set(experiment).name == notebook.STUDIED
    shutil.rmtree(images / "validation" / "apple")  # as in a part of a set
    monkeypatch.setenv("FRUITVEG_OTHER", str(images))
    second = notebook.second_set(experiment)
    assert (second.size, second.label_level) == (32, None)
    assert second.as_distributed.split_sizes() == {"train": 24, "val": 6, "test": 12}
    with pytest.raises(InputError, match="class 'apple' has no images in val"):
        _ = second.images


def test_tables_are_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda markdown: shown.append(markdown.data))
    notebook.table(pd.DataFrame({"F1": [0.12345]}, index=["kiwi"]))
    assert "| kiwi | 0.123 |" in shown[0]
    notebook.table(pd.DataFrame({"first": [], "bits": []}))
    assert "first" in shown[1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (RANDOM, "Not transfer"),
        (BUNDLED, "2 minutes of training, and put 7%"),
        ("ImageNet (Keras)", None),
    ],
)
def test_makeshift_weights_are_said_loudly(monkeypatch, source, said):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda markdown: shown.append(markdown.data))
    about = {"images": "some", "seconds_in_all": 120, "held_out_accuracy_rounded": 0.07}
    monkeypatch.setattr(weights, "card", lambda backbone: about)
    notebook.caveat(BACKBONES["vgg16"], source)
    assert [said in text for text in shown] == ([True] if said else [])


def test_a_figure_of_a_makeshift_network_says_so(home, monkeypatch):
    monkeypatch.setattr(notebook, "display", lambda image: None)
    for source, title in ((BUNDLED, BUNDLED), ("ImageNet (Keras)", "")):
        figure = plots.bands({"a": pd.DataFrame({"mean": [1], "low": [0], "high": [2]})}, "x", "y")
        notebook.show(figure, "figure", source)
        assert figure.get_suptitle() == title
