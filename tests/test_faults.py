"""Full disks, closed folders, kills and neighbours: nothing lost, nothing half written."""

import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import load_run, save_image, unprivileged, write_images
from processes import finish, start

from fruitveg_tl import cli
from fruitveg_tl.config import PATHS
from fruitveg_tl.training.fit import Batches, KeepEpochs
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import exclusive, sha256_file


@pytest.mark.reliability("disks that are full")
def test_a_full_disk_is_named_and_the_run_goes_on_later(home, quick, tmp_path, tried):
    whole = finish(tmp_path / "whole", quick)
    limits = (1_000, 150_000, 1_000_000, 50_000_000)  # pixels, activations, training, network
    for limit in limits:
        process, log = start(tmp_path / "full", quick, limit)
        process.join()
        lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert process.exitcode == 2, log.read_text()
        assert len(lines) == 1 and "free space" in lines[0] and "Traceback" not in log.read_text()
        log.unlink()
    assert finish(tmp_path / "full", quick) == whole
    tried(len(limits))


@pytest.mark.parametrize("closed", ["cache", "runs"])
@pytest.mark.reliability("folders that cannot be written")
def test_a_closed_folder_is_named(home, open_folder, monkeypatch, capsys, closed):
    write_images(open_folder / "images")
    monkeypatch.setenv("FRUITVEG_HOME", str(open_folder))
    for folder in (PATHS.data, PATHS.cache, PATHS.runs):
        folder.mkdir()
        folder.chmod(0o555 if folder.name == closed else 0o777)
    options = ["--backbones", "vgg16", "--weights", "random", "--size", "32", "--views", "0"]
    options += ["--probe-epochs", "1", "--finetune-epochs", "1"]
    with unprivileged():
        code = cli.main(["run", "--dataset", str(open_folder / "images"), *options])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert code == 2 and str(PATHS.data / closed) in line and "permissions" in line
    (PATHS.data / closed).chmod(0o777)
    with unprivileged():
        assert cli.main(["run", "--dataset", str(open_folder / "images"), *options]) == 0


@pytest.mark.reliability("processes that start the same run at once")
def test_the_same_run_twice_at_once_is_computed_once(home, quick, tmp_path, tried):
    both = [start(tmp_path / "shared", quick) for _ in range(2)]
    for process, log in both:
        process.join()
        assert process.exitcode == 0, log.read_text()
    assert log.read_text().count("WARNING: VGG16") == 1  # said by the one that computes
    assert finish(tmp_path / "shared", quick) == finish(tmp_path / "alone", quick)
    tried(len(both))


def test_who_waits_is_told_so(tmp_path, capsys):
    def wait():
        with exclusive(tmp_path / "x"):
            pass

    with exclusive(tmp_path / "x"):
        waiting = multiprocessing.get_context("fork").Process(target=wait)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join()
    assert waiting.exitcode == 0


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.reliability("losses that are not numbers")
def test_a_loss_that_is_not_a_number_ends_training_with_the_best_epoch(home, capsys, bad):
    x = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    labels = np.eye(2, dtype=np.float32)[(x[:, 0] > 0).astype(int)]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, "softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])

    class Broken(Batches):
        def start_epoch(self, epoch):
            super().start_epoch(epoch)
            self.views = [np.full_like(x, np.nan) if epoch == bad else x]

    train = Broken([x], np.arange(24), labels, 8, seed=0)
    validation = Batches([x], np.arange(24), labels, 8)
    keep = KeepEpochs(model, train, validation, 5, 5, "fine-tuned")
    options = {
        "validation_data": validation,
        "epochs": 5,
        "callbacks": [keep],
        "shuffle": False,
        "verbose": 0,
    }
    if bad == 0:
        with pytest.raises(InputError, match="not a finite number in epoch 0"):
            model.fit(train, **options)
        return
    model.fit(train, **options)
    history = keep.history
    assert [record["epoch"] for record in history] == [0, 1]
    assert (
        "WARNING: fine-tuned: the loss is not a finite number in epoch 2" in capsys.readouterr().err
    )
    assert np.isfinite(model.predict_on_batch(x)).all()
    loss = model.evaluate(x, labels, verbose=0)[0]
    assert loss == pytest.approx(history[-1]["val_loss"], rel=1e-5)


@pytest.mark.reliability("runs repeated from nothing, equal to the last bit")
def test_the_same_seed_gives_the_same_bits(home, quick, tmp_path):
    other = replace(quick, config=replace(quick.config, backbone="mobilenetv2", probe_epochs=2))
    one, two = (finish(tmp_path / name, other, eager=False) for name in ("one", "two"))
    assert one == two


def test_control_c_is_answered_in_one_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_table", interrupted)
    assert cli.main(["table"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


# --- networks from elsewhere --------------------------------------------------------------------


def replace_network(folder: Path, model: keras.Model) -> None:
    """Put another network into a run, its hash too: what someone who means harm would do."""
    (folder / "model.xml").unlink(missing_ok=True)
    model.save(folder / "model.keras")
    digest = sha256_file(folder / "model.keras")
    (folder / "model.keras.sha256").write_text(f"{digest}  model.keras\n")


def with_lambda(folder):
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Lambda(lambda x: x), keras.layers.Flatten()]
    )
    replace_network(folder, model)


def another_network(folder):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(folder / "model.keras")


def cut_short(folder):
    content = (folder / "model.keras").read_bytes()
    (folder / "model.keras").write_bytes(content[:-1000])


def without_record(folder):
    (folder / "model.keras.sha256").unlink()


@pytest.mark.reliability("foreign or damaged networks, refused")
def test_foreign_networks_are_refused(finished, tmp_path, capsys, tried):
    image = save_image(tmp_path / "mine.jpg", 0, 0)
    changes = {
        with_lambda: "refused",
        another_network: "not the network",
        cut_short: "not the network",
        without_record: "not the network",
    }
    for change, named in changes.items():
        folder = shutil.copytree(finished, tmp_path / change.__name__)
        change(folder)
        assert cli.main(["predict", str(image), "--run", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert line.startswith(f"error: {folder / 'model.keras'}: ") and named in line
    tried(len(changes))


class Harm:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import os; os.environ['HARMED'] = 'yes'",))


@pytest.mark.reliability("foreign or damaged networks, refused")
def test_pickles_are_never_loaded(finished):
    key = f"{finished.name}/fine-tuned/test"
    np.savez(finished / "probabilities.npz", **{key: np.array([Harm()], object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _ = load_run(finished).study.array(key)
    assert "HARMED" not in os.environ
