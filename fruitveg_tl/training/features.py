"""The output of layers that never change, computed once for every image.

It is stored for the training images, in a plain view and K seeded augmented ones, and in float32
for the validation and test images. Linear probe and fine-tuning read only this. An image is seen in
K + 1 versions over the whole training instead of a new one each epoch: that trades variety for
speed.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fruitveg_tl.config import PATHS, RunConfig
from fruitveg_tl.data import augmentation
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.models.backbones import backbone_by_name
from fruitveg_tl.training import inference
from fruitveg_tl.training.fit import Batches
from fruitveg_tl.training.identity import model_digest
from fruitveg_tl.training.inference import BATCH, Inference, frozen_precision, in_precision
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import note, progress
from fruitveg_tl.utils.storage import (
    exclusive,
    new_array,
    new_file,
    own_folder,
    sha256_json,
    write_json,
)

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Outputs:
    """What some layers give for each image.

    Attributes:
        images: of which the outputs are.
        views: K + 1 arrays (t, …) of training images, the plain view first: float16 on disk,
            float32 in memory of pooled features, uint8 on disk of pixels themselves.
        held_out: (h, …) array of validation and test images; float32, or uint8 of pixels.
        train_rows: the rows of the index in `views`, rising.
        held_out_rows: the rows of the index in `held_out`, rising.
        key: of all that the outputs depend on.
        seconds: time it took to compute all this, whenever that was.
        reused: True if everything was on disk.
    """

    images: Images
    views: Sequence[np.ndarray]
    held_out: np.ndarray
    train_rows: np.ndarray
    held_out_rows: np.ndarray
    key: str
    seconds: float
    reused: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's output."""
        return self.held_out.shape[1:]

    def training_batches(self, batch_size: int, seed: int, mixup: float = 0.0) -> Batches:
        """Return the batches to train on, see `fit.Batches`."""
        rows = self.images.rows("train")
        places = np.searchsorted(self.train_rows, rows)
        targets = self.images.one_hot(rows)
        return Batches(self.views, places, targets, batch_size, seed, mixup, self.key)

    def validation_batches(self, batch_size: int | None = None) -> Batches:
        """Return the batches of the validation split, without augmentation."""
        targets = self.images.one_hot(self.images.rows("val"))
        size = batch_size or EVALUATION_BATCH
        return Batches([self.held_out], self.places("val"), targets, size, key=self.key)

    def places(self, split: str) -> np.ndarray:
        """Return where the validation or the test images are in `held_out`."""
        return np.searchsorted(self.held_out_rows, self.images.rows(split))


def frozen_outputs(model: keras.Model | None, images: Images, recipe: RunConfig) -> Outputs:
    """Send every image through layers that stay frozen, or read what an earlier call has stored.

    Args:
        model: from raw RGB (n, size, size, 3) in 0..255 to the output that is wanted; float32. None
            for the (augmented) pixels themselves, as uint8.
        images: to send through it.
        recipe: whose backbone, size, crop and number of views count.

    Raises:
        InputError: if the weights give values that are not finite, or too large for float16.
    """
    # Each backend draws its own random numbers, and augments otherwise.
    origin = [images.pixels_key(recipe.size, recipe.crop), augmentation.RANGES]
    store = _Store(model, recipe, [*origin, keras.backend.backend()])
    parts = _parts(images.viewed_rows, images.held_out, recipe.views)
    missing = store.missing_bytes(parts)
    if not images.pixels_file(recipe.size, recipe.crop).exists():
        missing += len(images.index) * recipe.size**2 * 3
    if missing:
        note(
            f"{store.folder.name}: its cache needs {missing / 1e6:,.1f} MB more below "
            f"{PATHS.cache}, which «python -m fruitveg_tl clean» frees"
        )
    pixels = images.pixels(recipe.size, recipe.crop)
    return store.outputs(images, parts, lambda part: _view(pixels, part.rows, part.view))


def outputs_of(model: keras.Model, before: Outputs, recipe: RunConfig) -> Outputs:
    """Send stored outputs through further layers that stay frozen for now.

    Args:
        model: from `before` to the output that is wanted, e.g. pooled features; float32.
        before: from `frozen_outputs`.
        recipe: whose backbone and size count.
    """
    store = _Store(model, recipe, [before.key])
    parts = _parts(before.train_rows, before.held_out_rows, len(before.views) - 1)

    def seen(part: _Part) -> Iterator[np.ndarray]:
        source = before.held_out if part.view is None else before.views[part.view]
        return _view(source, np.arange(len(part.rows)))

    return store.outputs(before.images, parts, seen)


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


def _parts(train: np.ndarray, held_out: np.ndarray, views: int) -> list[_Part]:
    return [_Part(None, held_out), *(_Part(view, train) for view in range(views + 1))]


class _Store:
    """A folder of outputs of one model: in float32 of held-out images, rounded of the others."""

    def __init__(self, model: keras.Model | None, recipe: RunConfig, origin: list):
        self.model, self.recipe = model, recipe
        self.precision = frozen_precision(backbone_by_name(recipe.backbone))
        computed = [model_digest(model), self.precision, inference.engine()] if model else []
        self.key = sha256_json([computed, origin])[:16]
        name = f"{recipe.backbone}-{recipe.size}px-{model.name if model else 'pixels'}-{self.key}"
        self.folder = own_folder(PATHS.cache / "activations") / name
        self._ready: dict[str, Inference] = {}

    def outputs(
        self, images: Images, parts: list[_Part], seen: Callable[[_Part], Iterator[np.ndarray]]
    ) -> Outputs:
        """Compute what is not on disk yet; `seen` gives the batches of a part."""
        with exclusive(self.folder):  # runs side by side that differ in the seed share it
            missing = [part for part in parts if not self._timing(part).exists()]
            for part in missing:
                self._compute(part, seen(part))
        held_out, *views = map(self._stored, parts)
        seconds = sum(json.loads(self._timing(part).read_text())["seconds"] for part in parts)
        rows = parts[-1].rows, parts[0].rows
        key = sha256_json([self.key, *(some.tolist() for some in rows)])[:16]
        return Outputs(images, views, held_out, *rows, key, seconds, reused=not missing)

    def missing_bytes(self, parts: list[_Part]) -> int:
        """Return how much disk `outputs` will fill."""
        size = self.recipe.size
        shape = self.model.output_shape[1:] if self.model else (size, size, 3)
        return sum(
            len(part.rows) * math.prod(shape) * self._dtype(part).itemsize
            for part in parts
            if not self._timing(part).exists()
        )

    def _stored(self, part: _Part) -> np.ndarray:
        array = np.load(self._file(part), mmap_mode="r")
        # Pooled features are small, and read often.
        return np.array(array, np.float32) if array.ndim == 2 else array

    def _compute(self, part: _Part, batches: Iterator[np.ndarray]) -> None:
        start, dtype = time.perf_counter(), self._dtype(part)
        batches = self._inference(part).outputs(batches) if self.model else map(np.rint, batches)
        what = f"{self.model.name if self.model else 'pixels'}, {part.label}"
        _store((batch.astype(dtype) for batch in batches), len(part.rows), self._file(part), what)
        write_json(self._timing(part), {"seconds": time.perf_counter() - start})

    def _dtype(self, part: _Part) -> np.dtype:
        if not self.model:
            return np.dtype(np.uint8)
        return np.dtype(np.float32 if part.view is None else np.float16)

    def _inference(self, part: _Part) -> Inference:
        precision = "float32" if part.view is None else self.precision
        if precision not in self._ready:
            by_keras = inference.engine() == inference.KERAS and precision != "float32"
            model = in_precision(self.model, precision) if by_keras else self.model
            self._ready[precision] = Inference(model, precision)
        return self._ready[precision]

    def _file(self, part: _Part) -> Path:
        return self.folder / f"{part.name}.npy"

    def _timing(self, part: _Part) -> Path:
        """Return the file that is written last: a part without it is not finished."""
        return self.folder / f"{part.name}.json"


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
