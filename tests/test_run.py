import json
import os
import shutil
import signal
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from processes import contents, finish, start

from fruitveg_tl import config, results
from fruitveg_tl import predict as predicting
from fruitveg_tl import run as steps
from fruitveg_tl.config import PATHS
from fruitveg_tl.data.registry import load
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.inputs import Inputs, gather, pooled_features
from fruitveg_tl.models import backbones, weights
from fruitveg_tl.predict import choose_run, predict
from fruitveg_tl.reporting import readme, tables
from fruitveg_tl.run import train_and_evaluate
from fruitveg_tl.training.fit import Batches
from fruitveg_tl.training.inference import BATCH
from fruitveg_tl.utils.errors import InputError


def test_results_hold_together(finished, quick):
    dataset = load(quick.dataset)
    test = pd.read_csv(finished / "test.csv")
    rows = dataset.rows("test")
    assert test["path"].tolist() == dataset.index["path"][rows].tolist()
    scores = json.loads((finished / "metrics.json").read_text())
    assert list(scores) == ["fine-tuned", "linear probe"]
    for stage, file in (("linear probe", "linear-probe"), ("fine-tuned", "fine-tuned")):
        stored = np.load(finished / f"probabilities-{file}.npy")
        assert stored.shape == (len(rows), 3)
        assert scores[stage] == metrics.evaluate(dataset.targets[rows], stored)
    history = pd.read_csv(finished / "history.csv")
    assert history["stage"].unique().tolist() == ["linear probe", "fine-tuned"]
    assert (history.groupby("stage").size() <= 3).all()
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["dataset"]["sha256"] == dataset.digest
    assert provenance["dataset"]["images"] == dataset.split_sizes()
    assert provenance["weights"]["source"] == weights.RANDOM
    assert provenance["environment"]["libraries"]["keras"] == keras.__version__
    assert provenance["environment"]["commit"] and provenance["environment"]["cores"]
    assert provenance["trained_parameters"]["linear probe"] == 512 * 3 + 3
    assert provenance["interpolation"] is None
    settings, vgg16 = (
        json.loads((finished / "config.json").read_text()),
        backbones.BACKBONES["vgg16"],
    )
    for name in ("finetune_rate", "weight_decay"):
        assert settings[name] == getattr(vgg16, name)
    parts = ("frozen", "linear probe", "fine-tuned")
    spent = sum(provenance["seconds"][part] for part in parts)
    assert results.load(finished).training_seconds == pytest.approx(spent)


def test_saved_network_gives_the_stored_probabilities_from_raw_images(home, quick):
    # The network is stored in float32; what bfloat16 in the frozen part changes, engine.py says.
    # At a low rate: random weights give probabilities that hang on the last bit else.
    finished = train_and_evaluate(replace(quick, finetune_rate=1e-4), precision="float32")
    dataset = load(quick.dataset)
    rows = dataset.rows("test")
    model = keras.saving.load_model(finished / "model.keras")
    probabilities = model.predict(dataset.pixels(32)[rows].astype(np.float32), verbose=0)
    stored = np.load(finished / "probabilities-fine-tuned.npy")
    np.testing.assert_allclose(probabilities, stored, atol=2e-3)  # stored activations are float16


def test_training_in_bfloat16_stores_a_float32_network(home, quick, monkeypatch):
    trained, fit = {}, steps.fit_resumable

    def spy(model, *arguments):
        trained[arguments[-2].stage] = {layer.compute_dtype for layer in model.layers}
        return fit(model, *arguments)

    monkeypatch.setattr(steps, "fit_resumable", spy)
    folder = train_and_evaluate(quick, precision="mixed_bfloat16")
    assert trained["fine-tuned"] == {"bfloat16", "float32"}  # the head's softmax
    model = keras.saving.load_model(folder / "model.keras")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    dataset = load(quick.dataset)
    pixels = dataset.pixels(32)[dataset.rows("test")].astype(np.float32)
    stored = np.load(folder / "probabilities-fine-tuned.npy")
    assert np.abs(model.predict(pixels, verbose=0) - stored).mean() < 0.05


def test_a_crop_is_seen_in_training_and_in_prediction(home, quick, monkeypatch):
    whole, cropped = train_and_evaluate(quick), train_and_evaluate(replace(quick, crop=0.5))
    image = load(quick.dataset).root / results.load(cropped).test["path"][0]
    stored = [results.load(run).probabilities["fine-tuned"][0] for run in (whole, cropped)]
    for run, expected in zip((whole, cropped), stored, strict=True):
        trained = results.load(run)
        prediction = next(predict([image], trained))[1][trained.classes]
        np.testing.assert_allclose(prediction, expected, atol=0.02)
    probed = [results.load(run).probabilities["linear probe"] for run in (whole, cropped)]
    assert np.abs(probed[0] - probed[1]).max() > 1e-4


@pytest.mark.skipif(not find_spec("openvino"), reason="no OpenVINO here")
def test_openvino_computes_the_same_run(home, quick, monkeypatch):
    by_keras = results.load(train_and_evaluate(quick, precision="float32"))
    monkeypatch.setenv("FRUITVEG_ENGINE", "openvino")
    by_openvino = results.load(train_and_evaluate(quick, precision="float32", force=True))
    assert by_keras.folder == by_openvino.folder  # an engine does not make another run
    assert by_keras.provenance["engine"] == "keras"
    assert by_openvino.provenance["engine"] == "openvino"
    assert not by_openvino.provenance["frozen_part_reused"]  # but other stored activations
    assert by_openvino.history["loss"].to_numpy() == pytest.approx(
        by_keras.history["loss"].to_numpy(), rel=0.02
    )
    # The test split goes through OpenVINO, the saved network through Keras.
    assert by_openvino.provenance["model_difference"] < 1e-2
    np.testing.assert_allclose(
        by_openvino.probabilities["fine-tuned"], by_keras.probabilities["fine-tuned"], atol=0.02
    )


def test_predictions_come_a_batch_at_a_time(home, finished, images, monkeypatch):
    opened, decode = [], predicting.decode
    monkeypatch.setattr(
        predicting, "decode", lambda *arguments: opened.append(1) or decode(*arguments)
    )
    files = sorted(images.rglob("*.jpg")) * 3
    predictions = predict(files, results.load(finished))
    assert not opened
    assert next(predictions)[1].sum() == pytest.approx(1, abs=1e-3)
    assert len(opened) <= 2 * BATCH < len(files)
    assert len([*predictions]) == len(files) - 1


def test_finished_run_is_kept_unless_asked(finished, quick, monkeypatch):
    stamp = (finished / "metrics.json").stat().st_mtime_ns
    assert train_and_evaluate(quick) == finished
    assert (finished / "metrics.json").stat().st_mtime_ns == stamp
    before = contents(finished)
    assert train_and_evaluate(quick, force=True) == finished
    assert (finished / "metrics.json").stat().st_mtime_ns > stamp
    assert contents(finished) == before  # the same seed gives the same numbers


def test_seed_images_and_settings_make_other_runs(finished, quick):
    others = {
        train_and_evaluate(replace(quick, **change))
        for change in ({"seed": 1}, {"probe_rate": 0.01})
    }
    folder = Path(quick.dataset) / "test" / "apple"
    (folder / "0.jpg").write_bytes((folder / "1.jpg").read_bytes())
    assert len(others | {finished, train_and_evaluate(quick)}) == 4


def test_the_same_images_are_one_run_however_they_are_called(finished, quick, monkeypatch):
    folder = Path(quick.dataset)
    stamp = (finished / "metrics.json").stat().st_mtime_ns
    monkeypatch.chdir(folder.parent)
    for spelling in (folder.name, f"{folder}/", f"./{folder.name}/../{folder.name}"):
        assert train_and_evaluate(replace(quick, dataset=spelling)) == finished
    moved = folder.rename(folder.with_name("moved and renamed"))
    assert train_and_evaluate(replace(quick, dataset=str(moved))) == finished
    monkeypatch.setenv("HOME", str(moved.parent))
    assert train_and_evaluate(replace(quick, dataset=f"~/{moved.name}")) == finished
    assert (finished / "metrics.json").stat().st_mtime_ns == stamp
    assert train_and_evaluate(replace(quick, dataset=str(moved)), force=True) == finished
    # Other names in another order: stored predictions would stand beside the wrong images.
    first = min((moved / "test" / "apple").iterdir())
    first.rename(first.with_name("z.jpg"))
    assert train_and_evaluate(replace(quick, dataset=str(moved))) != finished


def test_levels_of_labels_are_refused_where_there_are_none(home, quick):
    with pytest.raises(InputError, match="only grocery has them"):
        train_and_evaluate(replace(quick, label_level="fine"))


def test_labels_are_text_also_where_they_look_like_numbers_or_nothing(home, quick, tmp_path):
    folder = write_images(tmp_path / "odd", ("001", "2.5", "NA"))
    run = results.load(train_and_evaluate(replace(quick, dataset=str(folder))))
    assert run.classes == ["001", "2.5", "NA"]
    assert run.targets.tolist() == sorted(run.targets) and set(run.targets) == {0, 1, 2}
    shown = metrics.evaluate(run.targets, run.probabilities["fine-tuned"])
    assert shown == run.scores["fine-tuned"]


def test_from_scratch_no_more_images_are_held_at_a_time_than_memory_bears(home, quick, monkeypatch):
    seen, batch = [], Batches.__getitem__

    def noted(self, index):
        x, targets = batch(self, index)
        seen.append(len(x))
        return x, targets

    monkeypatch.setattr(Batches, "__getitem__", noted)
    monkeypatch.setattr(steps, "SCRATCH_BATCH", 4)
    train_and_evaluate(replace(quick, strategy="scratch"))
    assert max(seen) == 4  # a step of eight images in two parts; so is evaluation
    seen.clear()
    monkeypatch.setattr(steps, "EVALUATION_BATCH", 2)
    train_and_evaluate(quick)
    assert max(seen) == 8


def test_scratch_trains_everything_and_never_transfers(home, quick):
    folder = train_and_evaluate(replace(quick, strategy="scratch", weights="auto"))
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["weights"]["source"] == weights.RANDOM
    assert provenance["trained_parameters"]["scratch"] > 14_000_000
    assert list(json.loads((folder / "metrics.json").read_text())) == ["scratch"]


def test_choosing_never_sees_the_test_split(home, quick):
    """Other test images must leave training as it is, to the last digit."""
    first = train_and_evaluate(quick)
    for file in (Path(quick.dataset) / "test").rglob("*.jpg"):
        file.write_bytes((Path(quick.dataset) / "train" / "apple" / "0.jpg").read_bytes())
    second = train_and_evaluate(quick)
    assert first != second
    assert (first / "history.csv").read_bytes() == (second / "history.csv").read_bytes()


def test_the_way_weights_were_asked_for_does_not_make_another_run(
    home, quick, tmp_path, monkeypatch
):
    file = tmp_path / "vgg16_imagenet_notop.weights.h5"
    backbones.BACKBONES["vgg16"].constructor(weights=None, include_top=False).save_weights(file)
    first = train_and_evaluate(replace(quick, weights=str(file)))
    monkeypatch.setenv("FRUITVEG_WEIGHTS", str(tmp_path))
    assert train_and_evaluate(replace(quick, weights="auto")) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "magic"}, "strategy: 'magic' is unknown; choose transfer or scratch"),
        ({"size": 16}, "size: 16 is too small; at least 32"),
        ({"finetune_epochs": 0}, "finetune_epochs: 0 .* at least 1"),
        ({"seed": -1}, "seed: -1 .* at least 0"),
        ({"views": 2.5}, "views: 2.5 is no int"),
        ({"logit_adjustment": 2.0}, "at most 1"),
        ({"crop": 0.0}, "crop: 0.0 is too small"),
        ({"backbone": "alexnet"}, "unknown backbone"),
        ({"boundary": "block9_pool"}, "boundary block9_pool: VGG16 cannot be cut there"),
    ],
)
def test_settings_that_make_no_sense(home, quick, change, message):
    with pytest.raises(InputError, match=message):
        train_and_evaluate(replace(quick, **change))


# Each marker is something on disk that shows that a step is under way or has just ended.
MOMENTS = {
    "decode": "data/cache/pixels/.*",
    "frozen part": "data/cache/activations/*/.*",
    "between views": "data/cache/activations/*/plain.json",
    "linear probe": "data/cache/runs/*/linear probe/state",
    "fine-tuning": "data/cache/runs/*/fine-tuned/state",
    "results": "data/results/.*",
}


def test_killed_in_every_step_a_run_ends_with_the_same_results(home, quick, tmp_path):
    whole = finish(tmp_path / "whole", quick)
    other = tmp_path / "other home"
    killed = []
    for moment, marker in MOMENTS.items():
        process, _ = start(other, quick)
        while process.is_alive() and not any(other.glob(marker)):
            time.sleep(0.001)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed.append(moment)
        process.join()
    assert killed == list(MOMENTS)
    assert finish(other, quick) == whole


def test_a_departure_from_the_protocol_is_another_run_and_named_in_its_row(finished, quick):
    changes = [
        {"train_images_per_class": 2, "probe_first": False},
        {"divide_by_255": True, "resplit": 1, "views": 0},
    ]
    direct, resplit = (
        results.load(train_and_evaluate(replace(quick, **change))) for change in changes
    )
    assert len({finished, direct.folder, resplit.folder}) == 3
    assert direct.provenance["dataset"]["images"]["train"] == 6
    assert list(direct.scores) == ["fine-tuned"]
    assert resplit.provenance["dataset"]["name"] == "images-resplit1"
    runs = results.read()
    stages = set(tables.evaluated_models(runs)["Stage"])
    assert "fine-tuned, train_images_per_class 2, probe_first False" in stages
    assert "fine-tuned, divide_by_255 True, views 0" in stages
    content = results.load(finished).provenance["dataset"]["sha256"]
    filled = readme.fill(f"<!-- results {content} --><!-- /results -->", runs)
    assert "train_images_per_class" not in filled and filled.count("| VGG16 | 32 |") == 2
    assert (
        results.load(finished)
        .config.to_dict()
        .keys()
        .isdisjoint(f.name for f in config.settings(ablations=True))
    )
    assert choose_run().folder == finished


def test_few_images_come_from_every_class_alike_and_from_the_seed(home, quick):
    dataset = load(quick.dataset)

    def train_rows(**changes):
        settings = replace(quick, **changes)
        return Inputs(settings, dataset, None, None, "float32", "float32", "keras", 1).train_rows

    some = train_rows(train_images_per_class=3)
    targets = dataset.targets[dataset.rows("train")]
    assert np.bincount(targets[some]).tolist() == [3, 3, 3]
    assert (
        some.tolist()
        == train_rows(train_images_per_class=3).tolist()
        != train_rows(train_images_per_class=3, seed=1).tolist()
    )
    assert (
        train_rows().tolist() == train_rows(train_images_per_class=99).tolist() == list(range(24))
    )
    with pytest.raises(InputError, match="at least 1"):
        train_and_evaluate(replace(quick, train_images_per_class=0))


def test_of_fine_tuning_as_much_is_kept_as_lowers_the_validation_loss(home, quick):
    dataset = load(quick.dataset)
    rows = dataset.rows("val")
    # In bfloat16 the loss that WiSE-FT sees differs from that of the stored network.
    finished = train_and_evaluate(replace(quick, keep_lowest_loss=True), precision="float32")
    targets, probabilities = results.load(finished).validation("fine-tuned")
    np.testing.assert_array_equal(targets, dataset.targets[rows])
    assert probabilities.shape == (len(rows), 3)
    kept = results.load(finished).provenance["interpolation"]
    assert 0 < kept["alpha"] <= 1
    loss = metrics.evaluate(targets, probabilities)["loss"]
    assert loss == pytest.approx(kept["val_loss"], rel=1e-3)


def test_the_probes_features_computed_again_are_those_of_the_run(home, quick):
    """Random weights with BatchNorm: its statistics come from the images, each time."""
    config = replace(quick, backbone="mobilenetv2")
    train_and_evaluate(config)
    (stored,) = PATHS.cache.glob("activations/*/plain-pooled.npy")
    used = np.load(stored).astype(np.float32)
    shutil.rmtree(PATHS.cache / "activations")
    np.testing.assert_array_equal(pooled_features(gather(config)), used)
