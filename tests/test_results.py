import json
import re
import shutil
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from nbformat.v4 import new_code_cell, new_notebook, new_output

from fruitveg_tl import config, results
from fruitveg_tl.config import PATHS
from fruitveg_tl.data import grocery
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.reporting import readme, tables
from fruitveg_tl.utils.errors import InputError

SCORE_NAMES = (*tables.SCORES.values(), "precision_weighted")


def make_run(folder, backbone="vgg16", seed=0, accuracy=0.5, size=64, **other):
    """Write the three files that the table is made of."""
    folder.mkdir(parents=True)
    own = {k: v for k, v in other.items() if k not in ("content", "weights")}
    settings = config.RunConfig("set", backbone, seed=seed, size=size, **own)
    provenance = {
        "dataset": {"name": "set", "sha256": other.get("content", "5e7")},
        "weights": {
            "source": other.get("weights", "ImageNet (Keras)"),
            "file": None,
            "sha256": None,
        },
        "trained_parameters": {"linear probe": 1000, "fine-tuned": 12345},
        "environment": {"started": str(folder)},  # of which no two runs have the same
        "seconds": {"frozen": 100, "linear probe": 10, "fine-tuned": 40},
    }
    scores = {
        stage: dict.fromkeys(SCORE_NAMES, accuracy + i / 10)
        for i, stage in enumerate(("linear probe", "fine-tuned"))
    }
    for name, content in (
        ("config", settings.to_dict()),
        ("provenance", provenance),
        ("metrics", scores),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_seeds_are_summarised_and_settings_kept_apart(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.6, 0.55)):
        make_run(tmp_path / f"a{seed}", seed=seed, accuracy=accuracy)
    make_run(tmp_path / "b", size=96)
    make_run(tmp_path / "c", "resnet50", weights="none (random)")
    make_run(tmp_path / "d", "resnet50", weights="none (random)", views=2)
    make_run(tmp_path / "e", "resnet50", weights="none (random)", probe_first=False)
    table = tables.evaluated_models(results.read(tmp_path))
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


def test_other_images_under_the_same_name_are_told_apart(tmp_path):
    make_run(tmp_path / "before", content="01234567ab", accuracy=0.5)
    make_run(tmp_path / "after", content="fedcba9876", accuracy=0.6)
    table = tables.evaluated_models(results.read(tmp_path))
    assert len(table) == 4 and set(table["Seeds"]) == {1}
    assert set(table["Dataset"]) == {"set (01234567)", "set (fedcba98)"}


def test_a_copy_of_a_run_is_no_second_seed(tmp_path, capsys):
    make_run(tmp_path / "set-vgg16-0123abcd")
    for name in ("backup-set-vgg16", "zz"):
        shutil.copytree(tmp_path / "set-vgg16-0123abcd", tmp_path / name)
    assert set(results.read(tmp_path)["run"]) == {"set-vgg16-0123abcd"}
    warned = capsys.readouterr().err
    for name in ("backup-set-vgg16", "zz"):
        assert f"{tmp_path / name}: a copy of {tmp_path / 'set-vgg16-0123abcd'}" in warned


def test_a_run_being_written_or_without_metrics_is_not_read(tmp_path):
    make_run(tmp_path / "whole")
    make_run(tmp_path / ".half.tmp" / "half")
    (tmp_path / "empty").mkdir()
    assert set(results.read(tmp_path)["run"]) == {"whole"}
    assert results.read(tmp_path / "nowhere").empty


def test_marked_part_is_filled_and_the_rest_kept(tmp_path):
    make_run(tmp_path / "a")
    runs = results.read(tmp_path)
    text = "before\n<!-- results 5e7 -->\nold\n<!-- /results -->\nafter\n"
    filled = readme.fill(text, runs)
    assert "old" not in filled and "| VGG16 | 64 | linear probe |" in filled
    assert filled.startswith("before\n<!-- results 5e7 -->\n") and filled.endswith("\nafter\n")
    assert readme.fill(filled, runs) == filled
    with pytest.raises(InputError, match="no finished run on images 07he7"):
        readme.fill(text.replace("results 5e7", "results 07he7"), runs)


def test_markdown_has_one_line_per_row():
    text = tables.markdown(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert text == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |"


@pytest.mark.parametrize("name", readme.FILES)
def test_readmes_show_what_the_committed_results_and_notebooks_say(name):
    text = (PROJECT / name).read_text()
    assert re.search(r"<!-- (results|bundled|cell) ", text)
    assert readme.fill(text, results.read(PROJECT / "data" / "results")) == text


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
            provenance={"trained_parameters": {"fine-tuned": 2_500_000}},
        )

    # Each network misses one image; what the other says of it is surer.
    one = [run(0, (0.9, 0.1), (0.6, 0.4)), run(2, (0.9, 0.1), (0.6, 0.4))]
    other = [run(0, (0.4, 0.6), (0.1, 0.9)), run(2, (0.4, 0.6), (0.1, 0.9))]
    first, _, mean = tables.models({"A": one, "B": other}).to_dict("records")
    assert first["Accuracy"] == "0.500 ± 0.000" and mean["Accuracy"] == "1.000 ± 0.000"
    assert first["Trained parameters"] == "2.5 M" and first["Training time"] == "101 s"
    assert mean["Model"] == "mean of the probabilities" and mean["Training time"] == ""
    # Folds have test images of their own.
    one[1], other[1] = (run(2, p, truth=(1,)) for p in ((0.6, 0.4), (0.1, 0.9)))
    *_, mean = tables.models({"A": one, "B": other}).to_dict("records")
    assert mean["Accuracy"] == "1.000 ± 0.000"


def test_a_readme_quotes_an_executed_cell_by_its_tag(tmp_path, monkeypatch):
    monkeypatch.setattr(PATHS, "root", tmp_path)
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


def test_committed_metrics_follow_from_the_committed_probabilities():
    from fruitveg_tl.evaluation import metrics

    stored = PROJECT / "data" / "results"
    folders = [*stored.glob("grocery-*/"), *stored.glob("fruits-veges-*/")]
    assert folders
    for folder in folders:
        provenance = json.loads((folder / "provenance.json").read_text())
        classes = provenance["dataset"]["classes"]
        test = pd.read_csv(folder / "test.csv")
        targets = np.searchsorted(classes, test["label"])
        assert len(test) == provenance["dataset"]["images"]["test"]
        for stage, scores in json.loads((folder / "metrics.json").read_text()).items():
            given = np.load(folder / f"probabilities-{results.slug(stage)}.npy")
            assert metrics.evaluate(targets, given) == pytest.approx(scores)
        assert re.fullmatch("[0-9a-f]{40}", provenance["environment"]["commit"]), folder


def test_published_accuracies_are_shares_with_their_source():
    found = grocery.published()
    scores = found[["fine", "coarse"]].stack().dropna()
    assert scores.between(0.6, 1).all() and found["fine"].notna().all()
    assert found.loc[found["network"] == "VGG16", "fine"].tolist() == [0.738, 0.806]
    assert found["source"].str.contains("20").all()
