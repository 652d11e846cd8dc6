import keras
import numpy as np
import pytest

from fruitveg_tl.config import PATHS
from fruitveg_tl.training import identity
from fruitveg_tl.training.fit import (
    Batches,
    KeepEpochs,
    LogitAdjustedCrossentropy,
    warmup_cosine,
)

N, WIDTH = 40, 6


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, WIDTH)).astype(np.float16)
    return x, np.eye(2, dtype=np.float32)[(x[:, 0] > 0).astype(int)]


def fresh_model(optimizer=None, loss="categorical_crossentropy"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(2, "softmax")])
    rate = keras.optimizers.schedules.CosineDecay(0.01, 60)
    model.compile(optimizer or keras.optimizers.AdamW(rate), loss, metrics=["accuracy"])
    return model


class Killed(keras.callbacks.Callback):
    """Ends a fit as a kill would, at the start of an epoch or in the middle of it."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.when, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            raise KeyboardInterrupt


def fit(data, epochs=6, patience=6, killed=None, model=None):
    x, y = data
    model = model or fresh_model()
    train = Batches([x, x + 1], np.arange(N), y, 8, seed=0, key="x")
    validation = Batches([x], np.arange(N), y, 16, key="x")
    keep = KeepEpochs(model, train, validation, epochs, patience)
    model.fit(
        train,
        validation_data=validation,
        epochs=epochs,
        initial_epoch=keep.start,
        callbacks=[keep, *([Killed(*killed)] if killed else [])],
        shuffle=False,
        verbose=0,
    )
    return model, keep


def without_seconds(keep):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in keep.history]


def assert_equal(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_step_in_parts_is_the_step(data):
    x, y = data[0].astype(np.float32), data[1]
    trained = []
    for parts in (1, 2, 4):
        accumulated = parts if parts > 1 else None
        rate = warmup_cosine(0.1, 30 * parts)
        model = fresh_model(
            keras.optimizers.AdamW(rate, 0.0, gradient_accumulation_steps=accumulated)
        )
        for _ in range(10):
            for part in np.array_split(np.arange(N), parts):
                model.train_on_batch(x[part], y[part])
        trained.append(model.get_weights()[0])
    assert np.abs(trained[0] - fresh_model().get_weights()[0]).max() > 0.2
    for weights in trained[1:]:  # the rate rises a part earlier
        np.testing.assert_allclose(weights, trained[0], atol=0.05)


def test_a_step_that_an_epoch_ends_in_goes_on_after_a_kill(data, home, tmp_path, monkeypatch):
    def model():  # five batches an epoch
        rate = warmup_cosine(0.01, 30)
        return fresh_model(keras.optimizers.AdamW(rate, 0.004, gradient_accumulation_steps=2))

    undisturbed, whole = fit(data, epochs=3, model=model())
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        fit(data, epochs=3, killed=(1, 2), model=model())
    resumed, again = fit(data, epochs=3, model=model())
    assert without_seconds(again) == without_seconds(whole)
    assert_equal(resumed, undisturbed)


def test_the_rate_warms_up_then_decays_by_a_cosine():
    rate = warmup_cosine(1.0, 100)
    # The decay takes `batches` steps after the warm-up, so a fit ends before its lowest rate.
    assert [float(rate(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx(
        [0.1, 0.55, 1.0, 0.505, 0.01]
    )


def test_an_epoch_holds_every_image_once_with_its_own_label(data):
    x, y = data
    rows = np.arange(N)
    batches = Batches([x, x + 100], rows, y, 7, seed=3)
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
    batches = Batches([x], rows, y[rows], 4, seed=0)
    first = batches.order
    batches.start_epoch(1)
    assert (batches.order != first).any()
    batches.start_epoch(0)
    np.testing.assert_array_equal(batches.order, first)
    plain = Batches([x], rows, y[rows], 4)
    np.testing.assert_array_equal(
        np.concatenate([plain[i][0] for i in range(len(plain))]), x[rows].astype(np.float32)
    )


def test_mixup_blends_images_and_labels_in_the_same_proportion(data):
    x, y = data
    rows, targets = np.arange(N), y
    # One value per image that its label is a function of: the blend must keep that.
    x = np.repeat(targets[:, 1:] * 10, WIDTH, axis=1)
    batches = Batches([x], rows, targets, 7, seed=3, mixup=0.4)
    drawn = [batches[i] for i in range(len(batches))]
    values, blended = (np.concatenate(part) for part in zip(*drawn, strict=True))
    np.testing.assert_allclose(values[:, 0], 10 * blended[:, 1], rtol=1e-5)
    np.testing.assert_allclose(blended.sum(1), 1, rtol=1e-5)
    assert ((blended > 0.01) & (blended < 0.99)).any()
    again = Batches([x], rows, targets, 7, seed=3, mixup=0.4)
    np.testing.assert_array_equal(again[2][0], drawn[2][0])


def test_a_logit_adjusted_loss_is_lowest_where_the_probabilities_leave_the_frequencies_out():
    """With nothing to see, the best prediction is the class priors: or, adjusted, all alike."""
    targets = np.eye(3, dtype=np.float32)[[0] * 6 + [1] * 3 + [2]]
    frequencies = targets.sum(0)
    for tau in (0.0, 0.5, 1.0):
        loss = LogitAdjustedCrossentropy(frequencies, tau)
        best = frequencies ** (1 - tau) / (frequencies ** (1 - tau)).sum()
        probabilities = [best, best + [0.05, -0.05, 0], best + [0, 0.05, -0.05], np.full(3, 1 / 3)]
        losses = [
            float(np.mean(loss(targets, np.tile(prediction.astype(np.float32), (10, 1)))))
            for prediction in probabilities
        ]
        assert min(losses) == pytest.approx(losses[0], rel=1e-6)
        fractions = frequencies / 10
        assert losses[0] == pytest.approx(-(fractions * np.log(fractions)).sum(), rel=1e-5)


@pytest.mark.parametrize("patience", [None, 6])
def test_killed_at_every_epoch_a_fit_ends_like_an_undisturbed_one(
    data, home, tmp_path, monkeypatch, patience
):
    model, whole = fit(data, patience=patience)
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path / "other"))
    for epoch in range(6):
        with pytest.raises(KeyboardInterrupt):
            fit(data, patience=patience, killed=(epoch, epoch % 5))
    # Five epochs are stored: to repeat one of them would raise.
    resumed, again = fit(data, patience=patience, killed=(4, 0))
    assert without_seconds(again) == without_seconds(whole) and len(again.history) == 6
    assert_equal(resumed, model)


def test_best_epoch_is_restored_and_patience_ends_training(data, home):
    x, _ = data
    noise = np.random.default_rng(5).integers(0, 2, N)  # nothing to learn: validation gets worse
    targets = np.eye(2, dtype=np.float32)[noise]
    model, keep = fit((x, targets), epochs=40, patience=2)
    best, history = keep.best_epoch, keep.history
    assert len(history) == best + 3 < 40
    loss = model.evaluate(x.astype(np.float32), targets, verbose=0)[0]
    assert loss == pytest.approx(history[best]["val_loss"], rel=1e-5)
    assert history[best]["val_loss"] == min(record["val_loss"] for record in history)


def test_without_patience_all_epochs_are_trained_and_the_last_is_kept(data, home):
    x, _ = data
    targets = np.eye(2, dtype=np.float32)[np.random.default_rng(5).integers(0, 2, N)]
    model, keep = fit((x, targets), epochs=40, patience=None)
    assert len(keep.history) == 40 and keep.best_epoch < 39
    loss = model.evaluate(x.astype(np.float32), targets, verbose=0)[0]
    assert loss == pytest.approx(keep.history[-1]["val_loss"], rel=1e-5)


def test_a_finished_fit_is_not_trained_again(data, home):
    model, keep = fit(data)
    again, second = fit(data, killed=(0, 0))
    assert second.history == keep.history and second.start == 6
    assert_equal(again, model)


class Scaled(keras.layers.Dense):
    """A layer that keeps a value to itself."""

    def __init__(self, *arguments, scale=1.0, **options):
        super().__init__(*arguments, **options)
        self.scale = scale


def test_what_decides_a_fit_decides_its_key_and_names_do_not():
    def key(model, *others):
        return identity.fit_key(model, others)

    loss = LogitAdjustedCrossentropy([1, 2], 0.5)
    keys = [
        key(fresh_model()),
        key(fresh_model(), 1),
        key(fresh_model(keras.optimizers.AdamW(0.1))),
        key(fresh_model(keras.optimizers.AdamW(0.1, 0.5))),
        key(fresh_model(loss=loss)),
        key(fresh_model(loss=LogitAdjustedCrossentropy([1, 2], 0.4))),
        key(fresh_model(loss=LogitAdjustedCrossentropy([2, 2], 0.5))),
    ]
    assert len(set(keys)) == len(keys) and None not in keys
    assert key(fresh_model()) == keys[0]  # Keras calls its layers, and optimizer, otherwise by now
    assert key(fresh_model(loss=LogitAdjustedCrossentropy([1, 2], 0.5))) == keys[4]
    model = fresh_model()
    model.layers[0].trainable = False
    assert key(model) not in keys
    model.layers[0].trainable = True
    assert key(model) == keys[0]
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert key(model) not in keys


def test_what_does_not_describe_itself_is_trained_and_not_kept(data, home):
    hidden = keras.Sequential([keras.Input((WIDTH,)), Scaled(2, activation="softmax", scale=2)])
    hidden.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    closure = fresh_model(loss=lambda y, p: 2 * keras.losses.categorical_crossentropy(y, p))
    for model in (hidden, closure):
        assert identity.fit_key(model, []) is None
        _, keep = fit(data, epochs=2, model=model)
        assert len(keep.history) == 2
    assert not list((PATHS.cache / "fits").glob("*/kept.npz"))
