"""The frozen part, computed once.

Activations at the freeze boundary are stored for the plain view of every image and for K
seeded augmented views of the training images. Linear probe and fine-tuning read only these.
Caching augmented views on purpose trades variety for speed: an image is seen in K+1 versions over
the whole training instead of a new one each epoch; benchmarks/usual_recipe.py compares the two.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from fruitveg_tl.data.augmentation import augmenter
from fruitveg_tl.training.data_parallel import predict_on_batch
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import atomic_path, new_array, sha256_json, write_json

BATCH = 32


@dataclass(frozen=True)
class Activations:
    """What the tail is trained on.

    Attributes:
        plain: (n, …) array of all images of the set, in the order of the index.
        views: K arrays (n_train, …) of augmented training images.
        pooled_plain: (n, d) pooled features of `plain` before any fine-tuning, float32.
        pooled_views: the same of `views`.
        seconds: time it took to compute all this, on whichever run it was computed.
        reused: True if everything was found on disk.
    """

    plain: np.ndarray
    views: Sequence[np.ndarray]
    pooled_plain: np.ndarray
    pooled_views: Sequence[np.ndarray]
    seconds: float
    reused: bool


def activations_key(pixels_key: str, network: str, weights: str, precision: str) -> str:
    """Name the cache folder by everything that its content depends on."""
    # Without names: Keras numbers layers anew whenever one of their kind is made.
    augmentation = [
        [type(layer).__name__, layer.get_config() | {"name": None}] for layer in augmenter(0).layers
    ]
    # Each backend draws its own random numbers, and augments otherwise.
    parts = [keras.backend.backend(), pixels_key, network, weights, precision, augmentation]
    return sha256_json(parts)[:16]


def compute_activations(
    pixels: np.ndarray,
    train: np.ndarray,
    prefix: keras.Model | None,
    pool: keras.Model | None,
    views: int,
    folder: Path,
) -> Activations:
    """Return the activations, computing and storing whichever view is not on disk yet.

    Args:
        pixels: uint8 (n, size, size, 3).
        train: indices of the training images.
        prefix: the frozen part; None stores the (augmented) pixels themselves, as uint8.
        pool: boundary activations to pooled features; None where no linear probe is trained.
        views: K, the number of augmented views. View k depends on k alone, not on the run's
            seed, so runs with different seeds share them.
        folder: where to keep them, see `activations_key`.

    Raises:
        InputError: if the weights give values that are not finite, or too large for float16.
    """
    seconds, reused = 0.0, True
    files = {"plain": (np.arange(len(pixels)), None)}
    files |= {f"view-{k:02d}": (train, k) for k in range(1, views + 1)}
    stored, pooled = [], []
    for name, (rows, view) in files.items():
        file, pooled_file = folder / f"{name}.npy", folder / f"{name}-pooled.npy"
        timing = folder / f"{name}.json"
        if not timing.exists():
            reused = False
            start = time.perf_counter()
            _store(_batches(pixels, rows, view, prefix), len(rows), file, f"frozen part, {name}")
            if pool:
                activations = np.load(file, mmap_mode="r")
                batches = _batches(activations, np.arange(len(rows)), None, pool)
                _store(batches, len(rows), pooled_file, f"pooled features, {name}")
            write_json(timing, {"seconds": time.perf_counter() - start})
        seconds += json.loads(timing.read_text())["seconds"]
        stored.append(np.load(file, mmap_mode="r"))
        if pool:
            pooled.append(np.load(pooled_file).astype(np.float32))
    return Activations(
        stored[0], stored[1:], pooled[0] if pool else None, pooled[1:], seconds, reused
    )


def _batches(source, rows, view, model):
    augment = None if view is None else augmenter(1000 * view)
    for start in range(0, len(rows), BATCH):
        batch = source[rows[start : start + BATCH]]
        if augment:
            batch = augment(batch.astype(np.float32), training=True)
        if model:
            yield predict_on_batch(model, keras.ops.convert_to_numpy(batch)).astype(np.float16)
        else:
            yield np.rint(keras.ops.convert_to_numpy(batch)).astype(np.uint8)


def _store(batches, count: int, file: Path, what: str) -> None:
    with atomic_path(file) as temporary, progress(what, count) as bar:
        array = None
        for start, batch in zip(range(0, count, BATCH), batches, strict=True):
            if not np.isfinite(batch).all():
                raise InputError(f"{what}: values are not finite in float16; check the weights")
            if array is None:
                shape = (count, *batch.shape[1:])
                array = new_array(temporary, batch.dtype, shape)
            array[start : start + len(batch)] = batch
            bar.update(len(batch))
        array.flush()
