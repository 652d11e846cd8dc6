import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT, load_run, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nbformat.v4 import new_code_cell, new_notebook, new_output

from fruitveg_tl import cli, studies
from fruitveg_tl.config import PATHS, RunConfig, ablations_in_words, recipe
from fruitveg_tl.data import grocery
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.reporting import readme, tables
from fruitveg_tl.utils.errors import InputError

STAGES = ("linear probe", "fine-tuned")


def a_row(name, backbone="vgg16", seed=0, accuracy=0.5, size=64, **other):
    """Return what `runs.csv` says of a run."""
    own = {k: v for k, v in other.items() if k not in ("content", "weights")}
    config = RunConfig(backbone, seed=seed, size=size, **own)
    row = {
        "run": name,
        "images": "set",
        "content": other.get("content", "5e7"),
        "backbone": backbone,
        "seed": seed,
        "changes": ablations_in_words(config.to_dict(), recipe("set")),
        "images per class": None,
        "weights": other.get("weights", "ImageNet (Keras)"),
        "settings": json.dumps(config.to_dict()),
        "command": "python",
        "frozen seconds": 100 + seed / 1000,
    }
    for i, stage in enumerate(STAGES):
        row |= {f"{stage} {score}": accuracy + i / 10 for score in studies.METRICS}
        row |= {f"{stage} parameters": (1000, 12345)[i], f"{stage} seconds": (10, 40)[i]}
    return row


def make_run(folder, **other):
    """Write what the table of runs is made of."""
    folder.mkdir(parents=True)
    pd.DataFrame([a_row(folder.name, **other)]).to_csv(folder / "runs.csv", index=False)


@pytest.fixture
def runs(home):
    PATHS.runs.mkdir(parents=True)
    return PATHS.runs


def shown():
    return studies.by_stage(studies.own_runs())


def test_seeds_are_summarised_and_settings_kept_apart(runs):
    for seed, accuracy in enumerate((0.5, 0.6, 0.55)):
        make_run(runs / f"a{seed}", seed=seed, accuracy=accuracy)
    make_run(runs / "b", size=96)
    make_run(runs / "c", backbone="resnet50", weights="none (random)")
    make_run(runs / "d", backbone="resnet50", weights="none (random)", views=2)
    make_run(runs / "e", backbone="resnet50", weights="none (random)", probe_first=False)
    table = tables.evaluated_models(shown())
    assert len(table) == 10
    row = table[(table["Model"] == "VGG16") & (table["Pixels"] == 64)].iloc[0]
    assert row["Stage"] == "linear probe" and row["Seeds"] == 3
    assert row["Accuracy"] == "0.550 ± 0.050"
    assert row["Training time"] == "110 s"
    tuned = table[(table["Model"] == "VGG16") & (table["Pixels"] == 64)].iloc[1]
    assert tuned["Training time"] == "2.5 min" and tuned["Trained parameters"] == "12,345"
    resnet = table[table["Model"] == "ResNet50"]
    assert set(resnet["Weights"]) == {"none (random)"}
    # Settings are named where runs differ in nothing else.
    tuned = {stage for stage in resnet["Stage"] if stage.startswith("fine-tuned")}
    assert tuned == {f"fine-tuned, {x}" for x in ("views 8", "views 2", "probe_first False")}
    for title in ("Model", "Accuracy", "Loss", "Precision", "Recall", "F1", "Weights"):
        assert title in table.columns


def test_other_images_under_the_same_name_are_told_apart(runs):
    make_run(runs / "before", content="01234567ab", accuracy=0.5)
    make_run(runs / "after", content="fedcba9876", accuracy=0.6)
    table = tables.evaluated_models(shown())
    assert len(table) == 4 and set(table["Seeds"]) == {1}
    assert set(table["Dataset"]) == {"set (01234567)", "set (fedcba98)"}


def test_a_copy_of_a_run_is_no_second_seed(runs, capsys):
    make_run(runs / "set-vgg16")
    for name in ("backup-set-vgg16", "zz-set-vgg16"):
        shutil.copytree(runs / "set-vgg16", runs / name)
    assert [run.folder.name for run in studies.own_runs()] == ["set-vgg16"]
    warned = capsys.readouterr().err
    for name in ("backup-set-vgg16", "zz-set-vgg16"):
        assert f"{runs / name}: a copy of {runs / 'set-vgg16'}" in warned


def test_a_run_of_a_backbone_that_is_gone_is_kept_and_passed_over(runs, capsys, monkeypatch):
    for name in ("set-vgg16", "set-resnet50"):
        make_run(runs / name, backbone=name.split("-")[1])
    monkeypatch.setattr(studies, "BACKBONES", {"vgg16": BACKBONES["vgg16"]})
    assert [run.folder.name for run in studies.own_runs()] == ["set-vgg16"]
    assert "its backbone, resnet50, is not registered" in capsys.readouterr().err
    assert (runs / "set-resnet50" / "runs.csv").exists()


def test_a_run_being_written_is_not_read_and_a_damaged_one_named(runs, capsys):
    make_run(runs / "whole")
    make_run(runs / ".half.tmp" / "half")
    (runs / "empty").mkdir()
    for name, content in {"damaged": "{", "foreign": "run,accuracy\na,1"}.items():
        (runs / name).mkdir()
        (runs / name / "runs.csv").write_text(content)
    make_run(runs / "newer")
    table = (runs / "newer" / "runs.csv").read_text()
    (runs / "newer" / "runs.csv").write_text(table.replace("batch_size", "hyper_size"))
    assert [run.name for run in studies.own_runs()] == ["whole"]
    warned = capsys.readouterr().err
    for name in ("damaged", "foreign", "newer"):
        assert f"WARNING: {runs / name}: not a study of this version" in warned


def test_marked_part_is_filled_and_the_rest_kept(runs):
    make_run(runs / "a")
    text = "before\n<!-- results 5e7 -->\nold\n<!-- /results -->\nafter\n"
    filled = readme.fill(text, shown())
    assert "old" not in filled and "| VGG16 | 64 | linear probe |" in filled
    assert filled.startswith("before\n<!-- results 5e7 -->\n") and filled.endswith("\nafter\n")
    assert readme.fill(filled, shown()) == filled
    with pytest.raises(InputError, match="no finished run on images 07he7"):
        readme.fill(text.replace("results 5e7", "results 07he7"), shown())


def test_markdown_has_one_line_per_row():
    text = tables.markdown(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert text == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |"


@pytest.mark.parametrize("name", readme.FILES)
def test_readmes_show_what_the_committed_results_and_notebooks_say(name):
    text = (PROJECT / name).read_text()
    assert re.search(r"<!-- (results|cell) ", text)
    assert readme.fill(text, studies.by_stage(studies.committed_runs())) == text


def test_the_mean_of_the_networks_is_evaluated_seed_by_seed():
    def run(seed, *probabilities, truth=(0, 1)):
        array, truth = np.array(probabilities), np.array(truth)
        return SimpleNamespace(
            targets=truth,
            probabilities={"fine-tuned": array},
            scores={
                "linear probe": {"accuracy": 0.5},
                "fine-tuned": metrics.evaluate(truth, array),
            },
            weights="ImageNet (Keras)",
            training_seconds=100 + seed,
        )

    # Each network misses one image; what the other says of it is surer.
    one = [run(0, (0.9, 0.1), (0.6, 0.4)), run(2, (0.9, 0.1), (0.6, 0.4))]
    other = [run(0, (0.4, 0.6), (0.1, 0.9)), run(2, (0.4, 0.6), (0.1, 0.9))]
    first, _, mean = tables.models({"A": one, "B": other}).to_dict("records")
    assert first["Fine-tuned"] == "0.500 ± 0.000" and mean["Fine-tuned"] == "1.000 ± 0.000"
    assert first["Frozen only"] == "0.500 ± 0.000" and first["Training time"] == "101 s"
    assert mean["Model"] == "mean of the probabilities" and mean["Training time"] == ""
    first, _, mean = tables.five_metrics({"A": one, "B": other}).to_dict("records")
    assert list(first) == ["Model", "Accuracy", "Loss", "Precision", "Recall", "F1"]
    assert first["Recall"] == "0.500 ± 0.000" and mean["Accuracy"] == "1.000 ± 0.000"
    # Folds have test images of their own.
    one[1], other[1] = (run(2, p, truth=(1,)) for p in ((0.6, 0.4), (0.1, 0.9)))
    *_, mean = tables.models({"A": one, "B": other}).to_dict("records")
    assert mean["Fine-tuned"] == "1.000 ± 0.000"


def test_a_readme_quotes_an_executed_cell_by_its_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path))
    cell = new_code_cell("say(1)", metadata={"tags": ["answer"]})
    cell.outputs = [new_output("display_data", {"text/markdown": "It is **0.9**."})]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "notebooks" / "05_x.ipynb")
    runs = pd.DataFrame()
    filled = readme.fill("a\n<!-- cell 05_x answer -->old<!-- /cell -->\nb", runs)
    assert filled == "a\n<!-- cell 05_x answer -->It is **0.9**.<!-- /cell -->\nb"
    block = "<!-- cell 05_x answer -->\n{}\n<!-- /cell -->"
    assert readme.fill(block.format("old"), runs) == block.format("It is **0.9**.")
    with pytest.raises(InputError, match=r"05_x.ipynb: no cell has the tag other"):
        readme.fill("<!-- cell 05_x other --><!-- /cell -->", runs)


COMMITTED = sorted(file.parent.name for file in PATHS.results.glob("*/runs.csv"))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_scores_follow_from_what_is_stored(name):
    study = studies.load_study(name)
    kept = study.arrays().keys()
    for run in study:
        assert run.counts["test"] == len(run.targets) and run.counts["val"] == len(run.val_targets)
        assert run.stages and run.history["stage"].unique().tolist() == list(run.stages)
        for stage, predicted in run.predicted.items():
            accuracy = metrics.accuracy(run.targets, predicted)
            assert accuracy == pytest.approx(run.scores[stage]["accuracy"])
            if f"{run.name}/{studies.slug(stage)}/test" in kept:
                again = metrics.evaluate(run.targets, run.probabilities[stage])
                assert again == pytest.approx(run.scores[stage], abs=5e-3)
                assert np.abs(run.probabilities[stage].sum(1) - 1).max() < 5e-3
        assert re.fullmatch("[0-9a-f]{40}", run.row["commit"]), run.name
        assert run.row["evaluated"] in ("float32", "bfloat16")


def test_the_committed_studies_are_few_small_and_read_without_keras_in_a_second():
    files = [file for file in PATHS.results.rglob("*") if file.is_file()]
    assert len(COMMITTED) >= 6 and len(files) <= 60
    assert sum(file.stat().st_size for file in files) < 16e6
    code = (
        "import sys; from fruitveg_tl.studies import load_study; s = load_study('grocery-coarse');"
        "run = next(iter(s)); run.history, run.targets, run.predicted;"
        "assert not {'keras', 'tensorflow', 'PIL'} & set(sys.modules); print(len(s.runs))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr


def test_a_study_that_is_not_there_is_answered_by_those_there_are():
    with pytest.raises(InputError, match=r"no study 'kiwis' .*grocery-coarse"):
        studies.load_study("kiwis")


@given(arrays(np.float32, (3, 5), elements=st.floats(0, 1, width=32)))
@settings(max_examples=50)
def test_rounded_probabilities_are_true_to_the_fourth_decimal(values):
    assert np.abs(values.astype(np.float16).astype(np.float32) - values).max() <= 5e-4


def test_published_accuracies_are_shares_with_their_source():
    found = grocery.published()
    scores = found[["fine", "coarse"]].stack().dropna()
    assert scores.between(0.6, 1).all() and found["fine"].notna().all()
    assert found.loc[found["network"] == "VGG16", "fine"].tolist() == [0.738, 0.806]
    assert found["source"].str.contains("20").all()


def test_runs_of_this_machine_enter_a_committed_study_by_one_command_alone(
    finished, quick, capsys, monkeypatch
):
    monkeypatch.setattr(studies, "RANDOM", "another")  # less is kept of random weights
    committed = PATHS.results / "images"
    shutil.copytree(finished, committed)
    before = studies.read_study(committed)
    assert before.runs.index.tolist() == [finished.name]
    quick.train(seed=1, probe_first=False)
    assert cli.main(["study"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{committed}: will be rewritten with 2 runs of this machine"
    study = studies.read_study(committed)
    assert sorted(study.runs["seed"]) == [0, 1]  # the first replaced, the second added
    ablation, plain = sorted(study, key=lambda run: -run.row["seed"])
    assert plain.scores == load_run(finished).scores
    np.testing.assert_array_equal(
        plain.probabilities["fine-tuned"], load_run(finished).probabilities["fine-tuned"]
    )
    assert ablation.predicted["fine-tuned"].shape == (12,) and len(ablation.history) == 2
    with pytest.raises(KeyError):  # of ablations the predicted class alone is kept
        _ = ablation.probabilities


def test_what_is_not_of_a_study_never_enters_it(finished, quick):
    committed = PATHS.results / "images"
    shutil.copytree(finished, committed)
    before = {file.name: file.read_bytes() for file in committed.iterdir()}
    table = finished / "images.csv"
    table.write_text(table.read_text().replace("test/apple/0.jpg", "test/apple/zero.jpg"))
    with pytest.raises(InputError, match="not of this study"):
        studies.publish("images", studies.own_runs())
    assert before == {file.name: file.read_bytes() for file in committed.iterdir()}


def test_a_folder_called_na_and_a_weights_file_stay_what_they_are(home, quick, tmp_path):
    file = tmp_path / "vgg16.weights.h5"
    BACKBONES["vgg16"].constructor(weights=None, include_top=False).save_weights(file)
    run = quick.train(images=write_images(tmp_path / "NA"), weights=str(file))
    again = load_run(run.folder)
    assert again.row["images"] == "NA" and len(again.test) == 12
    assert f"--weights {file}" in again.row["command"]


def test_the_code_of_the_readme_of_the_studies_runs():
    text = (PROJECT / "data" / "results" / "README.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert len(names["run"].scores) == 2 and len(names["study"].runs) == 104
