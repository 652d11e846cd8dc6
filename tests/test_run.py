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
from conftest import load_run, source_of, write_images
from processes import contents, finish, start

from fruitveg_tl import classifier, studies
from fruitveg_tl import run as steps
from fruitveg_tl.config import PATHS, RunConfig, Selection, settings
from fruitveg_tl.data.registry import load
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.models import backbones, weights
from fruitveg_tl.models.backbones import with_defaults
from fruitveg_tl.models.compiled import BATCH
from fruitveg_tl.reporting import readme, tables
from fruitveg_tl.training import features
from fruitveg_tl.training.fit import Batches, KeepEpochs
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError


def test_results_hold_together(finished, quick):
    images, run = load(quick.images), load_run(finished)
    rows = images.rows("test")
    assert run.test["path"].tolist() == images.index["path"][rows].tolist()
    assert run.stages == ("linear probe", "fine-tuned") and run.classes == list(images.classes)
    for stage, stored in run.probabilities.items():
        assert stored.shape == (len(rows), 3)
        accuracy = metrics.accuracy(images.targets[rows], stored.argmax(1))
        assert accuracy == pytest.approx(run.scores[stage]["accuracy"])
    assert run.history["stage"].unique().tolist() == ["linear probe", "fine-tuned"]
    assert (run.history.groupby("stage").size() <= 3).all()
    assert run.row["content"] == images.digest and run.counts == images.split_sizes()
    assert run.weights == backbones.RANDOM and run.row["evaluated"] == "float32"
    assert keras.__version__ in run.row["libraries"] and "cores" in run.row["machine"]
    assert run.row["commit"] and run.row["linear probe parameters"] == 512 * 3 + 3
    for name in ("finetune_rate", "weight_decay"):
        assert getattr(run.config, name) == getattr(backbones.BACKBONES["vgg16"], name)
    parts = ("frozen", "linear probe", "fine-tuned")
    assert run.training_seconds == pytest.approx(sum(run.row[f"{x} seconds"] for x in parts))


def compute_in(monkeypatch, precision):
    """Have training and the frozen part compute in a number type, whatever is fast here."""
    monkeypatch.setattr(runtime, "fast_precision", lambda gains: precision)


def pooled_features(inputs):
    """What a linear probe sees of the held-out images."""
    return steps.pooled_outputs(inputs, steps.starting_network(inputs))[1].held_out


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("engine", ["keras", "openvino"])
def test_what_is_reported_is_what_is_saved(home, quick, monkeypatch, precision, engine):
    """Also where training computes in bfloat16: scores are those of the saved network."""
    if engine == "openvino" and not find_spec("openvino"):
        pytest.skip("no OpenVINO here")
    monkeypatch.setenv("FRUITVEG_ENGINE", engine)
    # At a low rate: random weights give probabilities that hang on the last bit else.
    compute_in(monkeypatch, precision)
    run = quick.train(finetune_rate=1e-4)
    assert run.row["saved network differs by"] < 1e-5
    images = load(quick.images)
    pixels = images.pixels(32)[images.rows("test")].astype(np.float32)
    model = keras.saving.load_model(run.folder / "model.keras")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    again = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(
        again, run.probabilities["fine-tuned"], atol=5e-4
    )  # stored in 16 bits
    assert metrics.evaluate(run.targets, again) == pytest.approx(run.scores["fine-tuned"], rel=1e-4)
    # The probe's head, on what the pre-trained layers give.
    inputs = steps.Inputs(images, source_of(run.config), run.config)
    head, places = np.load(run.folder / "probe.npz"), images.rows("test")
    features = pooled_features(inputs)[np.searchsorted(images.held_out, places)]
    logits = features @ head["kernel"] + head["bias"]
    probe = np.exp(logits - logits.max(1, keepdims=True))
    probe /= probe.sum(1, keepdims=True)
    np.testing.assert_allclose(probe, run.probabilities["linear probe"], atol=1e-3)


def test_training_in_bfloat16_trains_in_bfloat16(home, quick, monkeypatch):
    trained = {}

    class Spy(KeepEpochs):
        def __init__(self, model, *arguments):
            super().__init__(model, *arguments)
            trained[self.what] = {layer.compute_dtype for layer in model.layers}

    monkeypatch.setattr(steps, "KeepEpochs", Spy)
    compute_in(monkeypatch, "mixed_bfloat16")
    quick.train()
    assert trained["fine-tuned"] == {"bfloat16", "float32"}  # the head's softmax


def test_a_crop_is_seen_in_training_and_in_prediction(home, quick):
    # With some seeds the random weights give every image to one class, cropped or not.
    whole, cropped = quick.train(seed=1), quick.train(seed=1, crop=0.5)
    image = load(quick.images).root / cropped.test["path"][0]
    for run in (whole, cropped):
        top = classifier.Classifier.load(run.folder)(image).top
        prediction = [top[name] for name in run.classes]
        np.testing.assert_allclose(prediction, run.probabilities["fine-tuned"][0], atol=1e-3)
    probed = [run.probabilities["linear probe"] for run in (whole, cropped)]
    assert np.abs(probed[0] - probed[1]).max() > 1e-4


@pytest.mark.skipif(not find_spec("openvino"), reason="no OpenVINO here")
def test_openvino_computes_the_same_run(home, quick, monkeypatch):
    compute_in(monkeypatch, "float32")
    by_keras = quick.train()
    monkeypatch.setenv("FRUITVEG_ENGINE", "openvino")
    loss = by_keras.history["loss"].to_numpy()
    before = by_keras.probabilities["fine-tuned"]
    by_openvino = quick.train(force=True)
    assert by_keras.folder == by_openvino.folder  # an engine does not make another run
    assert (by_keras.row["engine"], by_openvino.row["engine"]) == ("keras", "openvino")
    assert not by_openvino.row["frozen part reused"]  # but other stored activations
    assert by_openvino.history["loss"].to_numpy() == pytest.approx(loss, rel=0.02)
    np.testing.assert_allclose(by_openvino.probabilities["fine-tuned"], before, atol=0.02)


def test_predictions_come_a_batch_at_a_time(home, finished, images, monkeypatch):
    opened, decode = [], classifier.decode
    monkeypatch.setattr(
        classifier, "decode", lambda *arguments: opened.append(1) or decode(*arguments)
    )
    files = sorted(images.rglob("*.jpg")) * 3
    answers = classifier.Classifier.load(finished).answers(files)
    assert not opened
    assert sum(next(answers).top.values()) == pytest.approx(1, abs=1e-3)
    assert len(opened) <= 2 * BATCH < len(files)
    assert len([*answers]) == len(files) - 1


def test_finished_run_is_kept_unless_asked(finished, quick, monkeypatch):
    stamp = (finished / "runs.csv").stat().st_mtime_ns
    assert quick.train().folder == finished
    assert (finished / "runs.csv").stat().st_mtime_ns == stamp
    before = contents(finished)
    kept = {file: file.stat().st_mtime_ns for file in PATHS.cache.glob("fits/*/kept.npz")}
    assert quick.train(force=True).folder == finished
    assert len(kept) == 2 and all(file.stat().st_mtime_ns > old for file, old in kept.items())
    assert (finished / "runs.csv").stat().st_mtime_ns > stamp
    assert contents(finished) == before  # the same seed gives the same numbers


def test_seed_images_and_settings_make_other_runs(finished, quick):
    others = {quick.train(**change).folder for change in ({"seed": 1}, {"probe_rate": 0.01})}
    folder = Path(quick.images) / "test" / "apple"
    (folder / "0.jpg").write_bytes((folder / "1.jpg").read_bytes())
    assert len(others | {finished, quick.train().folder}) == 4


def test_the_same_images_are_one_run_however_they_are_called(finished, quick, monkeypatch):
    folder = Path(quick.images)
    stamp = (finished / "runs.csv").stat().st_mtime_ns
    monkeypatch.chdir(folder.parent)
    for spelling in (folder.name, f"{folder}/", f"./{folder.name}/../{folder.name}"):
        assert quick.train(images=spelling).folder == finished
    moved = folder.rename(folder.with_name("moved and renamed"))
    assert quick.train(images=moved).folder == finished
    monkeypatch.setenv("HOME", str(moved.parent))
    assert quick.train(images=f"~/{moved.name}").folder == finished
    assert (finished / "runs.csv").stat().st_mtime_ns == stamp
    assert quick.train(images=moved, force=True).folder == finished
    # Other names in another order: stored predictions would stand beside the wrong images.
    first = min((moved / "test" / "apple").iterdir())
    first.rename(first.with_name("z.jpg"))
    assert quick.train(images=moved).folder != finished


def test_a_finished_run_is_found_without_looking_at_an_image(finished, quick):
    images, source = load(quick.images), source_of(quick.config)
    shutil.rmtree(quick.images)
    assert steps.train(images, source, quick.config).folder == finished


def test_weights_are_loaded_once_for_all_seeds_of_a_backbone(images, home, monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "resolve", lambda backbone, *choice: asked.append(choice))
    loaded, configs = load(str(images)), [RunConfig("vgg16", seed=seed) for seed in range(3)]
    assert len(list(steps.jobs(loaded, Selection(str(images)), configs))) == 3
    assert asked == [("auto", 0)]
    list(steps.jobs(loaded, Selection(str(images), weights="random"), configs))
    assert asked[1:] == [("random", 0), ("random", 1), ("random", 2)]  # drawn by the seed


def test_levels_of_labels_are_refused_where_there_are_none(images, home):
    with pytest.raises(InputError, match="only grocery has them"):
        load(str(images), "fine")


def test_labels_are_text_also_where_they_look_like_numbers_or_nothing(home, quick, tmp_path):
    folder = write_images(tmp_path / "odd", ("001", "2.5", "NA"))
    run = quick.train(images=folder)
    assert run.classes == ["001", "2.5", "NA"]
    assert run.targets.tolist() == sorted(run.targets) and set(run.targets) == {0, 1, 2}
    shown = metrics.accuracy(run.targets, run.predicted["fine-tuned"])
    assert shown == pytest.approx(run.scores["fine-tuned"]["accuracy"])


def test_from_scratch_no_more_images_are_held_at_a_time_than_memory_bears(home, quick, monkeypatch):
    seen, batch = [], Batches.__getitem__

    def noted(self, index):
        x, targets = batch(self, index)
        seen.append(len(x))
        return x, targets

    monkeypatch.setattr(Batches, "__getitem__", noted)
    monkeypatch.setattr(steps, "SCRATCH_BATCH", 4)
    quick.train(strategy="scratch")
    assert max(seen) == 4  # a step of eight images in two parts; so is validation
    seen.clear()
    monkeypatch.setattr(features, "EVALUATION_BATCH", 2)
    quick.train()
    assert max(seen) == 8


def test_scratch_trains_everything_and_never_transfers(home, quick):
    config = replace(quick.config, strategy="scratch")
    ((images, source, _),) = steps.jobs(load(quick.images), Selection(quick.images), [config])
    run = steps.train(images, source, config)
    assert run.weights == backbones.RANDOM
    assert run.row["scratch parameters"] > 14_000_000
    assert run.stages == ("scratch",)


def test_choosing_never_sees_the_test_split(home, quick):
    """Other test images must leave training as it is, to the last digit."""
    first = quick.train()
    for file in (Path(quick.images) / "test").rglob("*.jpg"):
        file.write_bytes((Path(quick.images) / "train" / "apple" / "0.jpg").read_bytes())
    second = quick.train()
    assert first.folder != second.folder
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)


def test_the_way_weights_were_asked_for_does_not_make_another_run(
    home, quick, tmp_path, monkeypatch
):
    file = tmp_path / "vgg16_imagenet_notop.weights.h5"
    backbones.BACKBONES["vgg16"].constructor(weights=None, include_top=False).save_weights(file)
    first = quick.train(weights=str(file))
    monkeypatch.setenv("FRUITVEG_WEIGHTS", str(tmp_path))
    assert quick.train(weights="auto").folder == first.folder


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
        quick.train(**change)


# Each marker is something on disk that shows that a step is under way or has just ended.
MOMENTS = {
    "decode": "data/cache/pixels/.*",
    "frozen part": "data/cache/activations/*/.*",
    "between views": "data/cache/activations/*/held-out-*.json",
    "linear probe": "data/cache/fits/*/last.weights.h5",
    "fine-tuning": "data/cache/fits/*/kept.npz",
    "results": "data/runs/.*",
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
        {"labels": 2, "probe_first": False},
        {"divide_by_255": True, "fold": 1, "views": 0},
    ]
    direct, resplit = (quick.train(**change) for change in changes)
    assert len({finished, direct.folder, resplit.folder}) == 3
    assert direct.counts["train"] == 6
    assert direct.stages == ("fine-tuned",)
    assert resplit.row["images"] == "images-resplit1"
    runs = studies.by_stage(studies.own_runs())
    stages = set(tables.evaluated_models(runs)["Stage"])
    assert "fine-tuned, train_images_per_class 2, probe_first False" in stages
    assert "fine-tuned, divide_by_255 True, views 0" in stages
    content = load_run(finished).row["content"]
    filled = readme.fill(f"<!-- results {content} --><!-- /results -->", runs)
    assert "train_images_per_class" not in filled and filled.count("| VGG16 | 32 |") == 2
    declared = {f.name for f in settings(ablations=True)}
    assert load_run(finished).config.to_dict().keys().isdisjoint(declared)
    assert studies.choose_run().folder == finished


def test_few_images_come_from_every_class_alike_and_from_the_seed(images, home):
    whole = load(str(images))

    def drawn(count, seed=0):
        fewer = whole.subsample(count, seed)
        assert fewer.order == whole.order  # the same rows, the same decoded pixels
        assert fewer.content == whole.digest and (count == 99 or fewer.digest != whole.digest)
        assert fewer.rows("test").tolist() == whole.rows("test").tolist()
        return fewer.rows("train")

    targets = whole.targets[drawn(3)]
    assert np.bincount(targets).tolist() == [3, 3, 3]
    assert drawn(3).tolist() == drawn(3).tolist() != drawn(3, seed=1).tolist()
    assert drawn(99).tolist() == whole.rows("train").tolist()
    with pytest.raises(InputError, match="at least 1"):
        Selection(str(images), train_images_per_class=0)


def test_few_labels_and_all_share_one_frozen_part_other_random_weights_do_not(home, quick):
    """Also of a network whose BatchNorm statistics come from the images."""
    fewer = quick.train(backbone="mobilenetv2", labels=3)
    assert not fewer.row["frozen part reused"] and fewer.row["saved network differs by"] < 1e-5
    whole = quick.train(backbone="mobilenetv2")
    assert whole.row["frozen part reused"] and whole.row["saved network differs by"] < 1e-5
    resplit = quick.train(backbone="mobilenetv2", fold=1)
    assert not resplit.row["frozen part reused"]
    assert resplit.row["saved network differs by"] < 1e-5
    assert not quick.train(backbone="mobilenetv2", seed=1).row["frozen part reused"]


def test_the_probes_features_computed_again_are_those_of_the_run(home, quick):
    """Random weights with BatchNorm: its statistics come from the images, each time."""
    config = replace(quick.config, backbone="mobilenetv2")
    images, source = load(quick.images), source_of(config)
    steps.train(images, source, config)
    (stored,) = PATHS.cache.glob("activations/*-pool-*/held-out-*.npy")
    used = np.load(stored)
    shutil.rmtree(PATHS.cache / "activations")
    inputs = steps.Inputs(images, source, with_defaults(config))
    np.testing.assert_array_equal(pooled_features(inputs), used)


def test_settings_of_the_loss_and_of_batch_norm_act(home, images, quick):
    """Each changes the training: a setting that is parsed and dropped would not."""
    for i in range(5):  # classes of unequal size
        (images / "train" / "apple" / f"{i}.jpg").unlink()

    def losses(**changes):
        run = quick.train(backbone="mobilenetv2", probe_epochs=1, finetune_epochs=1, **changes)
        return run.history["loss"].tolist()

    plain = losses()
    for name, value in (
        ("logit_adjustment", 1.0),
        ("divide_by_255", True),
        ("update_batch_norm", True),
    ):
        assert losses(**{name: value}) != plain, name
