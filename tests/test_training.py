import json

import keras
import numpy as np
import pytest

from fruitveg_tl.training import Batches, best_epoch, fit_resumable

N, WIDTH = 40, 6


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, WIDTH)).astype(np.float16)
    return x, (x[:, 0] > 0).astype(int)


def fresh_model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(2, "softmax")])
    rate = keras.optimizers.schedules.CosineDecay(0.01, 60)
    model.compile(
        keras.optimizers.AdamW(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def fit(data, folder, epochs=6, patience=6, stop_after=None, model=None):
    x, y = data
    rows = np.arange(N)

    def batches(epoch):
        if stop_after is not None and epoch >= stop_after:
            raise KeyboardInterrupt
        return Batches([x, x + 1], [rows, rows], y, 8, np.random.default_rng([0, epoch]))

    model = model or fresh_model()
    history = fit_resumable(
        model, batches, Batches([x], [rows], y, 16), epochs, patience, folder, "test"
    )
    return model, [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_an_epoch_holds_every_photograph_once_with_its_own_label(data):
    x, y = data
    rows = np.arange(N)
    batches = Batches([x, x + 100], [rows, rows], y, 7, np.random.default_rng(3))
    drawn = [batches[i] for i in range(len(batches))]
    values = np.concatenate([part for part, _ in drawn])
    labels = np.concatenate([part for _, part in drawn])
    assert len(values) == N and values.dtype == np.float32
    from_second = values[:, 0] > 50
    assert 0 < from_second.sum() < N
    plain = np.where(from_second[:, None], values - 100, values)
    order = [int(np.abs(x - row).sum(1).argmin()) for row in plain]
    assert sorted(order) == list(range(N))
    np.testing.assert_array_equal(labels, y[order])


def test_epochs_differ_and_evaluation_keeps_the_order(data):
    x, y = data
    rows = np.arange(10, 20)
    first, second = (
        Batches([x], [rows], y[rows], 4, np.random.default_rng([0, epoch])) for epoch in (0, 1)
    )
    assert (first.order != second.order).any()
    plain = Batches([x], [rows], y[rows], 4)
    np.testing.assert_array_equal(
        np.concatenate([plain[i][0] for i in range(len(plain))]), x[rows].astype(np.float32)
    )


def test_an_interrupted_run_ends_like_an_undisturbed_one(data, tmp_path):
    model, history = fit(data, tmp_path / "whole")
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            fit(data, tmp_path / "parts", stop_after=stop)
    resumed, resumed_history = fit(data, tmp_path / "parts")
    assert resumed_history == history and len(history) == 6
    for one, other in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_best_epoch_is_restored_and_patience_ends_training(data, tmp_path):
    x, _ = data
    noise = np.random.default_rng(5).integers(0, 2, N)  # nothing to learn: validation gets worse
    model, history = fit((x, noise), tmp_path, epochs=40, patience=2)
    best = best_epoch(history)
    if len(history) < 40:
        assert len(history) == best + 3
    loss = model.evaluate(x.astype(np.float32), noise, verbose=0)[0]
    assert loss == pytest.approx(history[best]["val_loss"], rel=1e-5)
    assert history[best]["val_loss"] == min(record["val_loss"] for record in history)


def test_a_finished_phase_is_not_trained_again(data, tmp_path):
    model, history = fit(data, tmp_path)
    again, again_history = fit(data, tmp_path, stop_after=0)
    assert again_history == history
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_best_epoch_of_nothing():
    assert best_epoch([]) == -1
    assert best_epoch(json.loads('[{"val_loss": 2}, {"val_loss": 1}, {"val_loss": 1}]')) == 1
