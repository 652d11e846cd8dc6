"""The frozen part, computed once.

Activations at the freeze boundary are stored for the plain view of every image and for K
seeded augmented views of the training images. Linear probe and fine-tuning read only these.
Caching augmented views on purpose trades variety for speed: an image is seen in K+1 versions over
the whole training instead of a new one each epoch; benchmarks/usual_recipe.py compares the two.
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
    """What the tail is trained on.

    Attributes:
        plain: (n, …) array of all images of the set, in the order of the index.
        views: K arrays (n_train, …) of augmented training images.
        pooled_plain: (n, d) pooled features of `plain` before any fine-tuning, float32.
        pooled_views: the same of `views`.
        seconds: time it took to compute all this, on whichever run it was computed.
        reused: True if everything was on disk.
    """

    plain: np.ndarray
    views: Sequence[np.ndarray]
    pooled_plain: np.ndarray
    pooled_views: Sequence[np.ndarray]
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
        prefix: the layers before the boundary; None stores the (augmented) pixels themselves, as
            uint8.
        pool: boundary activations to pooled features; None where no linear probe is trained.
        folder: where to keep everything, see `activations_key`.
        precision: see `inference.Inference`.
    """

    prefix: keras.Model | None
    pool: keras.Model | None
    folder: Path
    precision: str = "float32"

    def compute(self, pixels: np.ndarray, train: np.ndarray, views: int) -> Activations:
        """Return the activations, computing and storing whichever view is not on disk yet.

        Args:
            pixels: uint8 (n, size, size, 3).
            train: indices of the training images.
            views: K, the number of augmented views. View k depends on k alone, not on the run's
                seed, so runs with different seeds share them.

        Raises:
            InputError: if the weights give values that are not finite, or too large for float16.
        """
        rows = {name: train if view else np.arange(len(pixels)) for name, view in _views(views)}
        reused = all(self._timing(name).exists() for name in rows)
        for name, view in _views(views):
            if not self._timing(name).exists():
                self._store_view(pixels, rows[name], name, view)
        stored = [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in rows]
        files = [self.folder / f"{name}-pooled.npy" for name in rows] if self.pool else []
        pooled = [np.load(file).astype(np.float32) for file in files]
        seconds = sum(json.loads(self._timing(name).read_text())["seconds"] for name in rows)
        plain = pooled[0] if pooled else None
        return Activations(stored[0], stored[1:], plain, pooled[1:], seconds, reused)

    def missing_bytes(self, counts: tuple[int, int], size: int, views: int) -> int:
        """Return how much disk `compute` will fill: `counts` are all images, training images."""
        shape, width = (self.prefix.output_shape[1:], 2) if self.prefix else ((size, size, 3), 1)
        missing = [view for name, view in _views(views) if not self._timing(name).exists()]
        return sum(counts[view > 0] * math.prod(shape) * width for view in missing)

    @cached_property
    def _fast_prefix(self) -> Inference:
        return Inference(self.prefix, self.precision)

    @cached_property
    def _fast_pool(self) -> Inference:
        return Inference(self.pool, self.precision)

    def _timing(self, name: str) -> Path:
        """Return the file that is written last: a view without it is not finished."""
        return self.folder / f"{name}.json"

    def _store_view(self, pixels: np.ndarray, rows: np.ndarray, name: str, view: int) -> None:
        start, file = time.perf_counter(), self.folder / f"{name}.npy"
        views = _view(pixels, rows, view)
        if self.prefix:
            batches = (x.astype(np.float16) for x in self._fast_prefix.outputs(views))
        else:
            batches = (np.rint(x).astype(np.uint8) for x in views)
        _store(batches, len(rows), file, f"frozen part, {name}")
        if self.pool:
            stored = _view(np.load(file, mmap_mode="r"), np.arange(len(rows)))
            batches = (x.astype(np.float16) for x in self._fast_pool.outputs(stored))
            pooled = self.folder / f"{name}-pooled.npy"
            _store(batches, len(rows), pooled, f"pooled features, {name}")
        write_json(self._timing(name), {"seconds": time.perf_counter() - start})


def _views(count: int) -> list[tuple[str, int]]:
    """Name the plain view, number 0, and the augmented ones, from 1."""
    return [("plain", 0)] + [(f"view-{view:02d}", view) for view in range(1, count + 1)]


def _view(source: np.ndarray, rows: np.ndarray, view: int = 0) -> Iterator[np.ndarray]:
    """Yield rows of an array in batches, augmented where `view` is not 0."""
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
