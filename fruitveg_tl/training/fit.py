"""Training that can be killed at any moment and goes on from its last finished epoch."""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import new_folder


class Batches(Sequence):
    """Batches of stored activations for one epoch: a sequence of (x, targets).

    Read by plain loops over `train_on_batch`, not by `Model.fit`: with `PyDataset` under
    TensorFlow 2.21 many epochs of 13 seconds lasted 20.5 or 41.0 (10 ms doubled 11 or 12 times: a
    wait between epochs, of unknown cause).

    Args:
        views: arrays of the same images, in the same order; with several, each image of the epoch
            is drawn from a random one of them.
        places: of the images of this epoch in those arrays, shape (n,).
        targets: one-hot, shape (n, classes).
        batch_size: images per batch.
        rng: decides order, views and mixup; None keeps the order and takes the first view.
        mixup: alpha of mixup (Zhang et al. 2018): every batch is blended with itself in reverse
            order, values and targets alike, in a proportion from Beta(alpha, alpha); 0 for none.
    """

    def __init__(
        self,
        views: Sequence[np.ndarray],
        places: np.ndarray,
        targets: np.ndarray,
        batch_size: int,
        rng: np.random.Generator | None = None,
        mixup: float = 0.0,
    ):
        self.views, self.places = views, places
        self.targets, self.batch_size = targets, batch_size
        n = len(targets)
        self.lam = rng.beta(mixup, mixup, len(self)) if mixup else np.ones(len(self))
        self.order = np.arange(n) if rng is None else rng.permutation(n)
        self.choice = np.zeros(n, int) if rng is None else rng.integers(len(views), size=n)

    def __len__(self) -> int:
        return math.ceil(len(self.targets) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        drawn = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = [self.views[self.choice[i]][self.places[i]] for i in drawn]
        x, targets = np.stack(images).astype(np.float32), self.targets[drawn]
        lam = np.float32(self.lam[index])
        if lam == 1:
            return x, targets
        return lam * x + (1 - lam) * x[::-1], lam * targets + (1 - lam) * targets[::-1]


def logit_adjusted_crossentropy(frequencies: np.ndarray, tau: float) -> Callable:
    """Return a loss that spares the network from learning which classes are frequent.

    The cross-entropy of the probabilities times the class priors (their fractions of the training
    images) to the power `tau`: logit adjustment (Menon et al. 2021). Probabilities without that
    factor, as a trained network gives them, favour rare classes more.

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


def adamw(rate: float, steps: int, weight_decay: float, parts: int) -> keras.Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019), its rate warmed up, then decaying by a cosine.

    Args:
        rate: the highest learning rate, reached after a tenth of the steps.
        steps: of the whole phase.
        weight_decay: a step's.
        parts: how many batches make up a step: their gradients are averaged.
    """
    # Keras asks the schedule at every batch, also where several make up a step.
    batches, accumulated = steps * parts, parts if parts > 1 else None
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / 10, batches, alpha=0.01, warmup_target=rate, warmup_steps=batches // 10
    )
    return keras.optimizers.AdamW(schedule, weight_decay, gradient_accumulation_steps=accumulated)


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        stage: one of `config.STAGES`.
        epochs: the most epochs.
        rate: the highest learning rate.
        mixup: see `Batches`.
        patience: stop after this many epochs without a lower validation loss, and keep the epoch
            where it is lowest; None to train all epochs and keep the last.
    """

    stage: str
    epochs: int
    rate: float
    mixup: float
    patience: int | None

    def is_over(self, history: Sequence[dict[str, float]]) -> bool:
        """Tell whether no epoch is left, or patience is at an end."""
        waited = len(history) - 1 - best_epoch(history)
        impatient = self.patience is not None and waited >= self.patience
        return len(history) >= self.epochs or impatient


def fit_resumable(
    model: keras.Model,
    train: Callable[[int], Batches],
    validation: Batches,
    phase: Phase,
    folder: Path,
) -> list[dict[str, float]]:
    """Train a model, and leave it with the weights of the epoch that the phase keeps.

    After every epoch weights, optimizer state, best weights and history are stored in one atomic
    step, so that a killed run goes on from there with the same result as an undisturbed one.

    Args:
        model: compiled; holds the phase's weights on return.
        train: epoch number (from 0) to that epoch's batches, the same ones on every call.
        validation: the validation split.
        phase: how long to train, and which epoch to keep.
        folder: where the state is kept.

    Returns:
        one record per epoch: epoch, loss, accuracy, val_loss, val_accuracy, seconds. If the loss
        stops being a finite number, training ends there, says so, and keeps the epochs before.

    Raises:
        InputError: if that happens in the first epoch.
    """
    state = folder / "state"
    history = _restore(model, state)
    if not phase.is_over(history):
        steps = len(train(len(history)))
        done, total = len(history) * steps, phase.epochs * steps
        with progress(phase.stage, total, initial=done, unit="batches") as bar:
            while not phase.is_over(history):
                record = _epoch(model, train(len(history)), validation, bar)
                if not math.isfinite(record["loss"] + record["val_loss"]):
                    _say_diverged(phase.stage, len(history))
                    break
                history.append(record | {"epoch": len(history)})
                _store_state(model, history, state)
    kept = "last" if phase.patience is None else "best"
    model.load_weights(state / f"{kept}.weights.h5")
    return history


def _epoch(model: keras.Model, train: Batches, validation: Batches, bar: tqdm) -> dict[str, float]:
    start = time.perf_counter()
    record = run_epoch(model, train, training=True, bar=bar)
    validated = run_epoch(model, validation)
    record |= {f"val_{name}": value for name, value in validated.items()}
    return record | {"seconds": time.perf_counter() - start}


def _restore(model: keras.Model, state: Path) -> list[dict[str, float]]:
    """Bring a model to where an earlier call was stopped; return the history until there."""
    model.optimizer.build(model.trainable_variables)
    if not state.exists():
        return []
    model.load_weights(state / "last.weights.h5")
    return json.loads((state / "history.json").read_text())


def _say_diverged(what: str, epoch: int) -> None:
    problem = f"{what}: the loss is not a finite number in epoch {epoch}"
    if epoch == 0:
        raise InputError(f"{problem}; lower the learning rate or check the weights")
    print(f"WARNING: {problem}; what came before is kept", file=sys.stderr)


def run_epoch(
    model: keras.Model, batches: Batches, training: bool = False, bar: tqdm | None = None
) -> dict[str, float]:
    """Show a compiled model all batches, to train on them or only to be tested.

    Args:
        model: compiled.
        batches: of one epoch.
        training: whether to train.
        bar: moves on with every batch.

    Returns:
        loss and compiled metrics, averaged over all images.
    """
    step = model.train_on_batch if training else model.test_on_batch
    totals: dict[str, float] = {}
    for batch in batches:
        # One batch's values: both methods reset the metrics when called.
        for name, value in step(*batch, return_dict=True).items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(batch[1])
        if bar is not None:
            bar.update()
    return {name: total / len(batches.targets) for name, total in totals.items()}


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the index of the lowest validation loss; -1 for an empty history."""
    return min(range(len(history)), key=lambda e: history[e]["val_loss"], default=-1)


def _store_state(model: keras.Model, history: list, state: Path) -> None:
    with new_folder(state) as temporary:
        model.save_weights(temporary / "last.weights.h5")
        best = temporary / "last.weights.h5"
        if best_epoch(history) != len(history) - 1:
            best = state / "best.weights.h5"
        shutil.copyfile(best, temporary / "best.weights.h5")
        (temporary / "history.json").write_text(json.dumps(history))
