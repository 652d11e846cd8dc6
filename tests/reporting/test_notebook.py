import shutil

import pandas as pd
import pytest

from fruitveg_tl import results
from fruitveg_tl.models.weights import BUNDLED, RANDOM
from fruitveg_tl.reporting import notebook
from fruitveg_tl.utils.errors import InputError


def test_the_notebook_chooses_unless_the_environment_does(monkeypatch):
    for name in ("DATASET", "LABELS", "SEEDS", "SIZE", "VIEWS"):
        monkeypatch.delenv(f"FRUITVEG_{name}", raising=False)
    experiment = notebook.configure_experiment(dataset="grocery", seeds=(1, 2), size=96)
    assert (experiment.name, experiment.size, experiment.seeds) == ("grocery", 96, (1, 2))
    monkeypatch.setenv("FRUITVEG_DATASET", "synthetic")
    experiment = notebook.configure_experiment(dataset="grocery", seeds=(1, 2), size=96)
    assert (experiment.size, experiment.seeds) == (96, (0,))  # the synthetic's own profile
    monkeypatch.setenv("FRUITVEG_DATASET", "fruits-veges")
    assert notebook.configure_experiment(dataset="grocery", size=96).size == 224
    monkeypatch.setenv("FRUITVEG_SIZE", "48")
    monkeypatch.setenv("FRUITVEG_SEEDS", "3 4")
    monkeypatch.setenv("FRUITVEG_LABEL_LEVEL", "fine")
    experiment = notebook.configure_experiment(dataset="grocery")
    assert (experiment.size, experiment.seeds, experiment.label_level) == (48, (3, 4), "fine")


def test_a_setting_that_makes_no_sense_ends_the_first_cell(monkeypatch):
    monkeypatch.setenv("FRUITVEG_SIZE", "16")
    with pytest.raises(InputError, match="size: 16 is too small; at least 32"):
        notebook.configure_experiment(dataset="grocery")


def test_finished_runs_are_used_and_a_lost_network_is_trained_again(finished, quick):
    experiment = notebook.configure_experiment(
        quick.dataset, size=32, views=1, batch_size=8, probe_epochs=3, finetune_epochs=2,
        weights="random",
    )  # fmt: skip
    assert experiment.run("vgg16") == [finished.name]
    (finished / "model.keras").unlink()
    before = (finished / "metrics.json").read_bytes()
    assert experiment.run("vgg16") == [finished.name]
    assert not (finished / "model.keras").exists()
    assert experiment.run("vgg16", networks=1) == [finished.name]
    assert (finished / "model.keras").exists()
    assert (finished / "metrics.json").read_bytes() == before


def test_the_second_set_is_the_one_that_a_variable_names(images, home, monkeypatch):
    experiment = notebook.configure_experiment(dataset="grocery", label_level="fine", size=32)
    assert notebook.second_set(experiment).name == "fruits-veges"
    shutil.rmtree(images / "validation" / "apple")  # as in a part of a set
    monkeypatch.setenv("FRUITVEG_OTHER", str(images))
    second = notebook.second_set(experiment)
    assert (second.size, second.label_level) == (32, None)
    assert second.as_distributed.split_sizes() == {"train": 24, "val": 6, "test": 12}
    with pytest.raises(InputError, match="class 'apple' has no images in val"):
        _ = second.dataset


def test_a_run_is_read_back_whole(finished):
    run = results.load(finished.name)
    assert run.label == "VGG16, none (random)"
    assert list(run.scores) == ["linear probe", "fine-tuned"]
    probabilities = run.probabilities["fine-tuned"]
    assert probabilities.shape == (len(run.targets), len(run.classes))
    assert (probabilities.argmax(1) == run.targets).mean() == pytest.approx(
        run.scores["fine-tuned"]["accuracy"]
    )
    with pytest.raises(InputError, match="no finished run here"):
        results.load("nothing")


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
def test_makeshift_weights_are_said_loudly(finished, monkeypatch, source, said):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda markdown: shown.append(markdown.data))
    start = {"seconds": 70, "start": None}
    about = {"images": "some", "seconds": 50, "held_out_accuracy_rounded": 0.07}
    about["start"] = start  # what it went on from counts
    monkeypatch.setattr(notebook, "card", lambda backbone: about)
    run = results.load(finished.name)
    run.provenance["weights"]["source"] = source
    notebook.caveat(run)
    assert [said in text for text in shown] == ([True] if said else [])


def test_readers_see_how_many_runs_a_notebook_reads_and_tests_which(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda bundle, raw: shown.append(bundle))
    notebook.record({"vgg16": ["a", "b"], "served": ["a"]})
    assert shown == [
        {notebook.RUNS: {"vgg16": ["a", "b"], "served": ["a"]}, "text/plain": "2 finished runs"}
    ]
