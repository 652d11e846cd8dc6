"""Training that can be killed at any moment and goes on from its last finished epoch."""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from fruitveg_tl.training.data_parallel import predict_on_batch, split
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import atomic_path


class Batches(Sequence):
    """Batches of stored activations for one epoch: a sequence of (x, targets).

    Read by plain loops over `train_on_batch`, not by `Model.fit`: with `PyDataset` under
    TensorFlow 2.21 many epochs of 13 seconds lasted 20.5 or 41.0 (10 ms doubled 11 or 12 times: a
    wait between epochs, of unknown cause).

    Args:
        views: arrays with one row per image, all of the same shape; with several, each
            image of the epoch is drawn from a random one of them.
        rows: rows[v] are the rows of `views[v]` to use, all of the same length n.
        targets: one-hot, shape (n, classes).
        batch_size: images per batch.
        rng: decides order, views and mixup; None keeps the order and takes the first view.
        mixup: alpha of mixup (Zhang et al. 2018): every batch is blended with itself in reverse
            order, values and targets alike, in a proportion from Beta(alpha, alpha); 0 for none.
    """

    def __init__(
        self,
        views: Sequence[np.ndarray],
        rows: Sequence[np.ndarray],
        targets: np.ndarray,
        batch_size: int,
        rng: np.random.Generator | None = None,
        mixup: float = 0.0,
    ):
        self.views, self.rows, self.targets, self.batch_size = views, rows, targets, batch_size
        n = len(targets)
        self.lam = rng.beta(mixup, mixup, len(self)) if mixup else np.ones(len(self))
        self.order = np.arange(n) if rng is None else rng.permutation(n)
        self.choice = np.zeros(n, int) if rng is None else rng.integers(len(views), size=n)

    def __len__(self) -> int:
        return math.ceil(len(self.targets) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        x = np.stack(
            [
                self.views[v][self.rows[v][i]]
                for i, v in zip(chosen, self.choice[chosen], strict=True)
            ]
        )
        x, targets, lam = (
            x.astype(np.float32),
            self.targets[chosen],
            np.float32(self.lam[index]),
        )
        if lam == 1:
            return x, targets
        return lam * x + (1 - lam) * x[::-1], lam * targets + (1 - lam) * targets[::-1]


def logit_adjusted_crossentropy(frequencies: np.ndarray, tau: float) -> Callable:
    """Return a loss that spares the network from learning which classes are frequent.

    The cross-entropy of the probabilities times the class priors, their fractions of the training images, to the
    power `tau`: logit adjustment (Menon et al. 2021), its tau. Answers without
    that factor, as a trained network gives them, favour rare classes more.

    Args:
        frequencies: training images of each class.
        tau: 0 is the plain cross-entropy, 1 removes the frequencies wholly.
    """
    if not tau:
        return keras.losses.categorical_crossentropy
    class_priors = ((frequencies / frequencies.sum()) ** tau).astype(np.float32)

    def loss(targets, probabilities):
        # Keras divides by the sum over the classes.
        return keras.losses.categorical_crossentropy(targets, probabilities * class_priors)

    return loss


def fit_resumable(
    model: keras.Model,
    train: Callable[[int], Batches],
    validation: Batches,
    epochs: int,
    patience: int | None,
    folder: Path,
    what: str,
) -> list[dict[str, float]]:
    """Train with early stopping on the validation loss and restore the best epoch.

    After every epoch weights, optimizer state, best weights and history are stored in one atomic
    step, so that a killed run goes on from there with the same result as an undisturbed one.

    Args:
        model: compiled; holds the best epoch's weights on return, without `patience` the last's.
        train: epoch number (from 0) to that epoch's batches, the same ones on every call.
        validation: the validation split.
        epochs: the most epochs.
        patience: stop after this many epochs without a lower validation loss; None trains all
            epochs.
        folder: where the state is kept.
        what: name of the phase, for the progress bar.

    Returns:
        one record per epoch: epoch, loss, accuracy, val_loss, val_accuracy, seconds. If the loss
        stops being a finite number, training ends there, says so, and keeps the epochs before.

    Raises:
        InputError: if that happens in the first epoch.
    """
    state = folder / "state"
    history: list[dict[str, float]] = []
    model.optimizer.build(model.trainable_variables)
    if state.exists():
        history = json.loads((state / "history.json").read_text())
        model.load_weights(state / "last.weights.h5")
    with progress(what, epochs, initial=len(history)) as bar:
        while len(history) < epochs and (
            patience is None or len(history) - 1 - best_epoch(history) < patience
        ):
            start = time.perf_counter()
            record = run_epoch(model, train(len(history)), training=True)
            found = run_epoch(model, validation)
            record |= {f"val_{name}": value for name, value in found.items()}
            if not math.isfinite(record["loss"] + found["loss"]):
                _say_diverged(what, len(history))
                break
            record |= {"epoch": len(history), "seconds": time.perf_counter() - start}
            history.append(record)
            _store_state(model, history, state)
            bar.set_postfix({"val_accuracy": f"{record['val_accuracy']:.3f}"})
            bar.update()
    kept = "last" if patience is None else "best"
    model.load_weights(state / f"{kept}.weights.h5")
    return history


def _say_diverged(what: str, epoch: int) -> None:
    problem = f"{what}: the loss is not a finite number in epoch {epoch}"
    if epoch == 0:
        raise InputError(f"{problem}; lower the learning rate or check the weights")
    print(f"WARNING: {problem}; the best epoch before it is kept", file=sys.stderr)


def interpolate(
    model: keras.Model, start: Sequence[np.ndarray], validation: Batches
) -> dict[str, float]:
    """Move the weights back towards `start` as far as that lowers the validation loss.

    Fine-tuning on one shop's images forgets some of what holds in every shop; the point
    between the weights before and after often does better than either (WiSE-FT, Wortsman et al.
    2022).

    Args:
        model: fine-tuned and compiled; holds the chosen weights on return.
        start: its weights before fine-tuning.
        validation: the validation split.

    Returns:
        alpha: fraction of fine-tuning that is kept, one of 0.1, 0.2, … 1; val_loss: the loss there.
    """
    tuned = model.get_weights()

    def blend(alpha: float) -> None:
        model.set_weights([(1 - alpha) * a + alpha * b for a, b in zip(start, tuned, strict=True)])

    losses = {}
    for alpha in np.linspace(0.1, 1, 10).round(1).tolist():
        blend(alpha)
        losses[alpha] = run_epoch(model, validation)["loss"]
    best = min(losses, key=losses.get)
    blend(best)
    return {"alpha": best, "val_loss": losses[best]}


def run_epoch(model: keras.Model, batches: Batches, training: bool = False) -> dict[str, float]:
    """Show a compiled model all batches, to train on them or only to be tested.

    Returns:
        loss and compiled metrics, averaged over all images.
    """
    step = model.train_on_batch if training else model.test_on_batch
    totals: dict[str, float] = {}
    for number, batch in enumerate(batches):
        # The first is whole: Keras cannot make a model's metrics from a batch that is split.
        parts = split(model, *batch) if number else batch
        # One batch's values: both methods reset the metrics when called.
        for name, value in step(*parts, return_dict=True).items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(batch[1])
    return {name: total / len(batches.targets) for name, total in totals.items()}


def predict(model: keras.Model, batches: Batches) -> np.ndarray:
    """Return the model's output for all batches, shape (n, …)."""
    return np.concatenate([predict_on_batch(model, x) for x, _ in batches])


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the index of the lowest validation loss; -1 for an empty history."""
    return min(range(len(history)), key=lambda e: history[e]["val_loss"], default=-1)


def _store_state(model: keras.Model, history: list, state: Path) -> None:
    with atomic_path(state) as temporary:
        temporary.mkdir()
        model.save_weights(temporary / "last.weights.h5")
        best = temporary / "last.weights.h5"
        if best_epoch(history) != len(history) - 1:
            best = state / "best.weights.h5"
        shutil.copyfile(best, temporary / "best.weights.h5")
        (temporary / "history.json").write_text(json.dumps(history))
