"""The frozen part, computed once.

Activations at the freeze boundary are stored for the training images, in a plain view and K
seeded augmented ones, and in float32 for the validation and test images. Linear probe and
fine-tuning read only these. An image is seen in K + 1 versions over the whole training instead of
a new one each epoch: that trades variety for speed.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fruitveg_tl.data import augmentation
from fruitveg_tl.training.inference import BATCH, Inference
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import new_array, new_file, sha256_json, write_json


@dataclass(frozen=True)
class Activations:
    """What the tail is trained on, and what it is scored on.

    Attributes:
        views: K + 1 arrays (t, …) of training images, the plain view first; float16.
        held_out: (h, …) array of validation and test images; float32.
        pooled_views: (t, d) pooled features of `views` before any fine-tuning, float32.
        pooled_held_out: (h, d), the same of `held_out`.
        train_rows, held_out_rows: the rows of the index that these arrays hold, rising.
        seconds: time it took to compute all this, on whichever run it was computed.
        reused: True if everything was on disk.
    """

    views: Sequence[np.ndarray]
    held_out: np.ndarray
    pooled_views: Sequence[np.ndarray]
    pooled_held_out: np.ndarray | None
    train_rows: np.ndarray
    held_out_rows: np.ndarray
    seconds: float
    reused: bool


def activations_key(pixels_key: str, network: str, weights: str, precision: str) -> str:
    """Name the cache folder by everything that its content depends on."""
    # Each backend draws its own random numbers, and augments otherwise.
    parts = [keras.backend.backend(), pixels_key, network, weights, precision, augmentation.RANGES]
    return sha256_json(parts)[:16]


@dataclass(frozen=True)
class FrozenPart:
    """The layers whose output never changes, and where that output is kept.

    Attributes:
        exact: the layers before the boundary, and boundary activations to pooled features, in
            float32. Without the former the (augmented) pixels themselves are stored, as uint8;
            without the latter there are no pooled features.
        rounded: the same layers in the precision of training, which may be the same models.
        folder: where to keep everything, see `activations_key`.
        precision: of the training images, see `inference.Inference`.
    """

    exact: tuple[keras.Model | None, keras.Model | None]
    rounded: tuple[keras.Model | None, keras.Model | None]
    folder: Path
    precision: str = "float32"

    def compute(
        self, pixels: np.ndarray, train: np.ndarray, held_out: np.ndarray, views: int
    ) -> Activations:
        """Return the activations, computing and storing what is not on disk yet.

        Args:
            pixels: uint8 (n, size, size, 3).
            train: rows of the training images.
            held_out: rows of the validation and test images.
            views: K, the number of augmented views. View k depends on k and `train` alone, not on
                the run's seed, so runs with different seeds share them.

        Raises:
            InputError: if the weights give values that are not finite, or too large for float16.
        """
        parts = _parts(train, held_out, views)
        reused = all(self._timing(part).exists() for part in parts)
        for part in parts:
            if not self._timing(part).exists():
                self._store_part(pixels, part)
        stored = [np.load(self.folder / f"{part.name}.npy", mmap_mode="r") for part in parts]
        files = [self.folder / f"{part.name}-pooled.npy" for part in parts] if self.exact[1] else []
        pooled = [np.load(file).astype(np.float32) for file in files] or [None]
        seconds = sum(json.loads(self._timing(part).read_text())["seconds"] for part in parts)
        return Activations(
            stored[1:], stored[0], pooled[1:], pooled[0], train, held_out, seconds, reused
        )

    def missing_bytes(self, train: np.ndarray, held_out: np.ndarray, size: int, views: int) -> int:
        """Return how much disk `compute` will fill."""
        shape = self.exact[0].output_shape[1:] if self.exact[0] else (size, size, 3)
        return sum(
            len(part.rows) * math.prod(shape) * self._dtype(part).itemsize
            for part in _parts(train, held_out, views)
            if not self._timing(part).exists()
        )

    def _dtype(self, part: "_Part") -> np.dtype:
        if not self.exact[0]:
            return np.dtype(np.uint8)
        return np.dtype(np.float32 if part.view is None else np.float16)

    @cached_property
    def _in_float32(self) -> tuple[Inference, Inference]:
        return _ready(self.exact, "float32")

    @cached_property
    def _as_in_training(self) -> tuple[Inference, Inference]:
        if self.precision == "float32" and self.rounded == self.exact:
            return self._in_float32
        return _ready(self.rounded, self.precision)

    def _timing(self, part: "_Part") -> Path:
        """Return the file that is written last: a part without it is not finished."""
        return self.folder / f"{part.name}.json"

    def _store_part(self, pixels: np.ndarray, part: "_Part") -> None:
        start = time.perf_counter()
        file, dtype = self.folder / f"{part.name}.npy", self._dtype(part)
        seen = _view(pixels, part.rows, part.view)
        if self.exact[0]:
            prefix, pool = self._in_float32 if part.view is None else self._as_in_training
            batches = (x.astype(dtype) for x in prefix.outputs(seen))
        else:
            batches = (np.rint(x).astype(dtype) for x in seen)
        _store(batches, len(part.rows), file, f"frozen part, {part.label}")
        if self.exact[1]:
            stored = _view(np.load(file, mmap_mode="r"), np.arange(len(part.rows)))
            batches = (x.astype(dtype) for x in pool.outputs(stored))
            pooled = self.folder / f"{part.name}-pooled.npy"
            _store(batches, len(part.rows), pooled, f"pooled features, {part.label}")
        write_json(self._timing(part), {"seconds": time.perf_counter() - start})


@dataclass(frozen=True)
class _Part:
    """Some images in one view: 0 is the plain one; None is the plain one for scores."""

    view: int | None
    rows: np.ndarray

    @property
    def label(self) -> str:
        return "held out" if self.view is None else f"view {self.view}"

    @property
    def name(self) -> str:
        # Sets that share their pixels may differ in their splits.
        return f"{self.label.replace(' ', '-')}-{sha256_json(self.rows.tolist())[:8]}"


def _ready(models: Sequence[keras.Model | None], precision: str) -> tuple[Inference | None, ...]:
    return tuple(model and Inference(model, precision) for model in models)


def _parts(train: np.ndarray, held_out: np.ndarray, views: int) -> list[_Part]:
    return [_Part(None, held_out)] + [_Part(view, train) for view in range(views + 1)]


def _view(source: np.ndarray, rows: np.ndarray, view: int | None = None) -> Iterator[np.ndarray]:
    """Yield rows of an array in batches, augmented in views from 1."""
    augment = augmentation.augmenter(1000 * view) if view else None
    for start in range(0, len(rows), BATCH):
        batch = source[rows[start : start + BATCH]]
        if augment:
            batch = augment(batch.astype(np.float32), training=True)
        yield keras.ops.convert_to_numpy(batch)


def _store(batches: Iterable[np.ndarray], count: int, file: Path, what: str) -> None:
    with new_file(file) as temporary, progress(what, count, unit="images") as bar:
        _write(batches, count, temporary, bar)


def _write(batches: Iterable[np.ndarray], count: int, file: Path, bar: tqdm) -> None:
    # A function of its own: Windows renames no file that is still mapped.
    array = None
    for start, batch in zip(range(0, count, BATCH), batches, strict=True):
        if not np.isfinite(batch).all():
            raise InputError(f"{bar.desc}: values are not finite in float16; check the weights")
        if array is None:
            array = new_array(file, batch.dtype, (count, *batch.shape[1:]))
        array[start : start + len(batch)] = batch
        bar.update(len(batch))
    array.flush()
