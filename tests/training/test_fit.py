import json

import keras
import numpy as np
import pytest

from fruitveg_tl.training.fit import (
    Batches,
    Phase,
    adamw,
    best_epoch,
    fit_resumable,
    logit_adjusted_crossentropy,
)

N, WIDTH = 40, 6


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, WIDTH)).astype(np.float16)
    return x, (x[:, 0] > 0).astype(int)


def fresh_model(optimizer=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(2, "softmax")])
    rate = keras.optimizers.schedules.CosineDecay(0.01, 60)
    optimizer = optimizer or keras.optimizers.AdamW(rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(data, folder, epochs=6, patience=6, stop_after=None, model=None):
    x, y = data
    rows = np.arange(N)

    def batches(epoch):
        if stop_after is not None and epoch >= stop_after:
            raise KeyboardInterrupt
        return Batches([x, x + 1], rows, y, 8, np.random.default_rng([0, epoch]))

    model = model or fresh_model()
    history = fit_resumable(
        model,
        batches,
        Batches([x], rows, y, 16),
        Phase("test", epochs, 0, 0, patience),
        folder,
    )
    return model, [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_a_step_in_parts_is_the_step(data):
    x, y = data[0].astype(np.float32), data[1]
    trained = []
    for parts in (1, 2, 4):
        model = fresh_model(adamw(0.1, 30, 0.0, parts))
        for _ in range(10):
            for part in np.array_split(np.arange(N), parts):
                model.train_on_batch(x[part], y[part])
        trained.append(model.get_weights()[0])
    assert np.abs(trained[0] - fresh_model().get_weights()[0]).max() > 0.2
    for weights in trained[1:]:  # the rate rises a part earlier
        np.testing.assert_allclose(weights, trained[0], atol=0.05)


def test_a_step_that_an_epoch_ends_in_goes_on_after_a_kill(data, tmp_path):
    def model():
        return fresh_model(adamw(0.01, 15, 0.004, 2))  # five batches an epoch

    undisturbed, history = fit(data, tmp_path / "a", epochs=3, model=model())
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "b", epochs=3, stop_after=1, model=model())
    resumed, again = fit(data, tmp_path / "b", epochs=3, model=model())
    assert again == history
    for one, other in zip(undisturbed.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_epoch_holds_every_image_once_with_its_own_label(data):
    x, y = data
    rows = np.arange(N)
    batches = Batches([x, x + 100], rows, y, 7, np.random.default_rng(3))
    drawn = [batches[i] for i in range(len(batches))]
    values = np.concatenate([part for part, _ in drawn])
    targets = np.concatenate([part for _, part in drawn])
    assert len(values) == N and values.dtype == np.float32
    from_second = values[:, 0] > 50
    assert 0 < from_second.sum() < N
    plain = np.where(from_second[:, None], values - 100, values)
    order = [int(np.abs(x - row).sum(1).argmin()) for row in plain]
    assert sorted(order) == list(range(N))
    np.testing.assert_array_equal(targets, y[order])


def test_epochs_differ_and_evaluation_keeps_the_order(data):
    x, y = data
    rows = np.arange(10, 20)
    first, second = (
        Batches([x], rows, y[rows], 4, np.random.default_rng([0, epoch])) for epoch in (0, 1)
    )
    assert (first.order != second.order).any()
    plain = Batches([x], rows, y[rows], 4)
    np.testing.assert_array_equal(
        np.concatenate([plain[i][0] for i in range(len(plain))]), x[rows].astype(np.float32)
    )


def test_mixup_blends_images_and_labels_in_the_same_proportion(data):
    x, y = data
    rows, targets = np.arange(N), np.eye(2, dtype=np.float32)[y]
    # One value per image that its label is a function of: the blend must keep that.
    x = np.repeat(targets[:, 1:] * 10, WIDTH, axis=1)
    batches = Batches([x], rows, targets, 7, np.random.default_rng(3), mixup=0.4)
    drawn = list(batches)
    values, blended = (np.concatenate(part) for part in zip(*drawn, strict=True))
    np.testing.assert_allclose(values[:, 0], 10 * blended[:, 1], rtol=1e-5)
    np.testing.assert_allclose(blended.sum(1), 1, rtol=1e-5)
    assert ((blended > 0.01) & (blended < 0.99)).any()
    again = Batches([x], rows, targets, 7, np.random.default_rng(3), mixup=0.4)
    np.testing.assert_array_equal(again[2][0], drawn[2][0])


def test_a_logit_adjusted_loss_is_lowest_where_the_probabilities_leave_the_frequencies_out():
    """With nothing to see, the best prediction is the class priors: or, adjusted, all alike."""
    targets = np.eye(3, dtype=np.float32)[[0] * 6 + [1] * 3 + [2]]
    frequencies = targets.sum(0)
    for tau in (0.0, 0.5, 1.0):
        loss = logit_adjusted_crossentropy(frequencies, tau)
        best = frequencies ** (1 - tau) / (frequencies ** (1 - tau)).sum()
        probabilities = [best, best + [0.05, -0.05, 0], best + [0, 0.05, -0.05], np.full(3, 1 / 3)]
        losses = [
            float(np.mean(loss(targets, np.tile(prediction.astype(np.float32), (10, 1)))))
            for prediction in probabilities
        ]
        assert min(losses) == pytest.approx(losses[0], rel=1e-6)
        fractions = frequencies / 10
        assert losses[0] == pytest.approx(-(fractions * np.log(fractions)).sum(), rel=1e-5)


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


def test_without_patience_all_epochs_are_trained_and_the_last_is_kept(data, tmp_path):
    x, _ = data
    noise = np.random.default_rng(5).integers(0, 2, N)
    model, history = fit((x, noise), tmp_path, epochs=40, patience=None)
    assert len(history) == 40 and best_epoch(history) < 39
    loss = model.evaluate(x.astype(np.float32), noise, verbose=0)[0]
    assert loss == pytest.approx(history[-1]["val_loss"], rel=1e-5)


def test_a_finished_phase_is_not_trained_again(data, tmp_path):
    model, history = fit(data, tmp_path)
    again, again_history = fit(data, tmp_path, stop_after=0)
    assert again_history == history
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_best_epoch_of_nothing():
    assert best_epoch([]) == -1
    assert best_epoch(json.loads('[{"val_loss": 2}, {"val_loss": 1}, {"val_loss": 1}]')) == 1
