"""Arguments of `model.fit`: batches, loss, learning rate, a callback that stores every epoch."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fruitveg_tl.config import PATHS
from fruitveg_tl.training.identity import fit_key
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import note, progress
from fruitveg_tl.utils.storage import new_folder, own_folder, remove, sha256_json


class Batches(keras.utils.PyDataset):
    """Batches of stored outputs for `model.fit`, determined by seed and epoch.

    Pass `shuffle=False` to `fit`, or Keras also shuffles the batches, differently after a restart.

    Args:
        views: arrays of the same images, in the same order; each epoch draws one for each image.
        places: positions of the images in those arrays, shape (n,).
        targets: one-hot, shape (n, classes).
        batch_size: images per batch.
        seed: decides order, views and mixup; None keeps the order and takes the first view.
        mixup: alpha of mixup (Zhang et al. 2018): every batch is blended with its reverse, in a
            proportion from Beta(alpha, alpha); 0 for none.
        key: identifies the views.
    """

    def __init__(
        self,
        views: Sequence[np.ndarray],
        places: np.ndarray,
        targets: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        mixup: float = 0.0,
        key: str = "",
    ):
        # With one worker TensorFlow tunes the pipeline, which delays an epoch's end to 0.15, 0.31,
        # … or 41.0 seconds. With two, Keras waits 0.1 s per epoch: too long for a linear probe.
        on_disk = isinstance(views[0], np.memmap)
        super().__init__(workers=2 if on_disk else 1, max_queue_size=4)
        self.views, self.places, self.targets = views, places, targets
        self.batch_size, self.seed, self.mixup, self.key = batch_size, seed, mixup, key
        self.start_epoch(0)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of all that determines the batches."""
        settings = [self.key, len(self.views), self.batch_size, self.seed, self.mixup]
        return sha256_json([*settings, self.places.tolist(), self.targets.argmax(1).tolist()])

    def start_epoch(self, epoch: int) -> None:
        """Draw the order, views and mixup proportions of an epoch, counted from 0."""
        n = len(self.targets)
        if self.seed is None:
            self.order, self.choice, self.lam = np.arange(n), np.zeros(n, int), np.ones(len(self))
            return
        rng = np.random.default_rng([self.seed, epoch])
        self.order = rng.permutation(n)
        self.choice = rng.integers(len(self.views), size=n)
        self.lam = rng.beta(self.mixup, self.mixup, len(self)) if self.mixup else np.ones(len(self))

    def __len__(self) -> int:
        return math.ceil(len(self.targets) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        x = np.empty((len(drawn), *self.views[0].shape[1:]), np.float32)
        for place, i in enumerate(drawn):
            x[place] = self.views[self.choice[i]][self.places[i]]
        targets, lam = self.targets[drawn], np.float32(self.lam[index])
        if lam == 1:
            return x, targets
        # Two images fit into the processor's cache; blending the whole batch takes longer.
        for place in range((len(x) + 1) // 2):
            one, other = x[place], x[-1 - place]
            x[place], x[-1 - place] = lam * one + (1 - lam) * other, lam * other + (1 - lam) * one
        return x, lam * targets + (1 - lam) * targets[::-1]


@keras.saving.register_keras_serializable("fruitveg_tl")
class LogitAdjustedCrossentropy(keras.losses.Loss):
    """Logit-adjusted cross-entropy, for imbalanced classes (Menon et al. 2021).

    Multiplies the probabilities by the class priors (fractions of the training images, `counts` by
    class) to the power `tau`: 0 for plain cross-entropy, 1 for full adjustment. The trained
    network's own probabilities then favour rare classes more.
    """

    def __init__(self, counts: Sequence[int], tau: float, **options):
        super().__init__(**options)
        self.counts, self.tau = [int(count) for count in counts], tau
        fractions = np.array(self.counts) / sum(self.counts)
        self.priors = (fractions**tau).astype(np.float32)

    def call(self, y_true, y_pred):
        """Return the loss of each image; Keras divides by the sum over the classes."""
        return keras.losses.categorical_crossentropy(y_true, y_pred * self.priors)

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "counts": self.counts, "tau": self.tau}


def warmup_cosine(rate: float, batches: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return a rate that rises to `rate` in a tenth of a fit's batches, then decays by cosine."""
    return keras.optimizers.schedules.CosineDecay(
        rate / 10, batches, alpha=0.01, warmup_target=rate, warmup_steps=batches // 10
    )


class KeepEpochs(keras.callbacks.Callback):
    """Store every epoch, so that a killed fit resumes and a finished one is not repeated.

    Each epoch stores weights, optimizer, history and (with `patience`) the best weights in one
    atomic step below `data/cache/fits`, under `identity.fit_key`. Unlike Keras' `BackupAndRestore`
    and `EarlyStopping`, it restores the history and the best epoch.

        keep = KeepEpochs(model, train, val, epochs=10)
        model.fit(
            train, validation_data=val, epochs=10, initial_epoch=keep.start, callbacks=[keep],
            shuffle=False,
        )

    Args:
        model: compiled; receives the last stored weights, if there are any.
        patience: stop after this many epochs without a lower validation loss, and restore the
            weights of the epoch where it was lowest; None keeps the last epoch.
        what: name of the fit in progress bars and messages.
        again: repeat a finished fit.

    Attributes:
        history: one record per epoch: epoch, loss, accuracy, val_loss, val_accuracy, seconds.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Batches,
        validation: Batches,
        epochs: int,
        patience: int | None = None,
        what: str = "fit",
        again: bool = False,
    ):
        super().__init__()
        self.train, self.epochs, self.patience, self.what = train, epochs, patience, what
        self.history: list[dict] = []
        model.optimizer.build(model.trainable_variables)
        self.key = fit_key(model, [train.identity, validation.identity, epochs, patience])
        if self.key is None:
            note(f"{what}: a part of it cannot be written down, so it is not kept for next time")
            self._scratch = tempfile.TemporaryDirectory()
        fits = Path(self._scratch.name) if self.key is None else own_folder(PATHS.cache / "fits")
        self.folder = fits / (self.key or "fit")
        if again and self._is_finished():
            remove(self.folder)
        if self.folder.exists():
            self._restore(model)

    @property
    def start(self) -> int:
        """The epoch to start from; for a finished fit, the number of epochs."""
        return self.epochs if self._over() else len(self.history)

    @property
    def best_epoch(self) -> int:
        """Index of the lowest validation loss; -1 before the first epoch."""
        losses = [record["val_loss"] for record in self.history]
        return losses.index(min(losses)) if losses else -1

    @property
    def seconds(self) -> float:
        """Total seconds of all epochs."""
        return sum(record["seconds"] for record in self.history)

    def on_train_begin(self, logs=None):
        """Show a progress bar; Keras calls this and the methods below."""
        total, done = self.epochs * len(self.train), len(self.history) * len(self.train)
        self._bar = progress(self.what, total, initial=done, unit="batches")

    def on_epoch_begin(self, epoch, logs=None):
        """Draw the epoch's batches."""
        self._began = time.perf_counter()
        self.train.start_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        """Advance the bar."""
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Store the epoch, or stop."""
        record = {name: float(value) for name, value in logs.items()}
        if not math.isfinite(record["loss"] + record["val_loss"]):
            self._diverged(epoch)
            return
        seconds = time.perf_counter() - self._began
        self.history.append({"epoch": epoch, **record, "seconds": seconds})
        self._store()
        self.model.stop_training = self._over()

    def on_train_end(self, logs=None):
        """Restore the weights to keep, and store only those."""
        self._bar.close()
        if self._is_finished():
            return
        kept = "last" if self.patience is None else "best"
        self.model.load_weights(self.folder / f"{kept}.weights.h5")
        with new_folder(self.folder) as temporary:
            np.savez(temporary / "kept.npz", *self.model.get_weights())
            (temporary / "history.json").write_text(json.dumps(self.history))

    def _over(self) -> bool:
        waited = len(self.history) - 1 - self.best_epoch
        impatient = self.patience is not None and waited >= self.patience
        return len(self.history) >= self.epochs or impatient or self._is_finished()

    def _is_finished(self) -> bool:
        return (self.folder / "kept.npz").exists()

    def _restore(self, model: keras.Model) -> None:
        self.history = json.loads((self.folder / "history.json").read_text())
        if not self._is_finished():
            model.load_weights(self.folder / "last.weights.h5")
            return
        with np.load(self.folder / "kept.npz") as kept:
            model.set_weights([kept[name] for name in kept.files])

    def _store(self) -> None:
        with new_folder(self.folder) as temporary:
            last = temporary / "last.weights.h5"
            self.model.save_weights(last)
            if self.patience is not None:
                is_best = self.best_epoch == len(self.history) - 1
                best = last if is_best else self.folder / "best.weights.h5"
                shutil.copyfile(best, temporary / "best.weights.h5")
            (temporary / "history.json").write_text(json.dumps(self.history))

    def _diverged(self, epoch: int) -> None:
        problem = f"{self.what}: the loss is not a finite number in epoch {epoch}"
        if epoch == 0:
            raise InputError(f"{problem}; lower the learning rate or check the weights")
        note(f"WARNING: {problem}; what came before is kept")
        self.model.stop_training = True
