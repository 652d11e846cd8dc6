"""The output of the frozen layers, computed once per image.

Training images are stored in a plain and K seeded augmented views, validation and test images in
float32. The linear probe and fine-tuning read only these. Training sees K + 1 views of each image
instead of a new one per epoch: less variety, but faster.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fruitveg_tl.config import PATHS, TRAIN, VAL, RunConfig
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
    """Stored outputs of some layers.

    Attributes:
        images: the images.
        views: K + 1 arrays (t, …) of training images, the plain view first: float16 on disk,
            float32 in memory for pooled features, uint8 on disk for pixels.
        held_out: (h, …) array of validation and test images; float32, or uint8 for pixels.
        train_rows: the rows of the index in `views`, ascending.
        held_out_rows: the rows of the index in `held_out`, ascending.
        key: identifies the outputs.
        seconds: time to compute the outputs.
        reused: whether all outputs were cached.
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
        """Shape of one image's output."""
        return self.held_out.shape[1:]

    def training_batches(self, batch_size: int, seed: int, mixup: float = 0.0) -> Batches:
        """Return the batches to train on, see `fit.Batches`."""
        rows = self.images.rows(TRAIN)
        places = np.searchsorted(self.train_rows, rows)
        targets = self.images.one_hot(rows)
        return Batches(self.views, places, targets, batch_size, seed, mixup, self.key)

    def validation_batches(self, batch_size: int | None = None) -> Batches:
        """Return the batches of the validation split, without augmentation."""
        targets = self.images.one_hot(self.images.rows(VAL))
        size = batch_size or EVALUATION_BATCH
        return Batches([self.held_out], self.places(VAL), targets, size, key=self.key)

    def places(self, split: str) -> np.ndarray:
        """Return the positions of the validation or test images in `held_out`."""
        return self.images.places(split)


def frozen_outputs(model: keras.Model | None, images: Images, recipe: RunConfig) -> Outputs:
    """Compute the output of frozen layers for every image, or read it from the cache.

    `model` maps raw RGB (n, size, size, 3) in 0..255 to the output, in float32; None gives the
    (augmented) pixels themselves, as uint8. Of `recipe`, the backbone, size, crop and views are
    used. Raises InputError if an output is not finite, or too large for float16.
    """
    # Augmentation depends on the backend's random numbers.
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
    """Compute the output of further frozen layers, e.g. pooled features, from stored outputs.

    `model` is in float32; of `recipe`, the backbone and size are used.
    """
    store = _Store(model, recipe, [before.key])
    parts = _parts(before.train_rows, before.held_out_rows, len(before.views) - 1)

    def seen(part: _Part) -> Iterator[np.ndarray]:
        source = before.held_out if part.view is None else before.views[part.view]
        return _view(source, np.arange(len(part.rows)))

    return store.outputs(before.images, parts, seen)


@dataclass(frozen=True)
class _Part:
    """Some images in one view: 0 is plain; None is plain in float32, for held-out images."""

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
    """A folder of one model's outputs: float32 for held-out images, float16 for the others."""

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
        """Compute the missing outputs; `seen` returns the batches of a part."""
        with exclusive(self.folder):  # parallel runs of several seeds share it
            missing = [part for part in parts if not self._timing(part).exists()]
            for part in missing:
                self._compute(part, seen(part))
        held_out, *views = map(self._stored, parts)
        seconds = sum(json.loads(self._timing(part).read_text())["seconds"] for part in parts)
        rows = parts[-1].rows, parts[0].rows
        key = sha256_json([self.key, *(some.tolist() for some in rows)])[:16]
        return Outputs(images, views, held_out, *rows, key, seconds, reused=not missing)

    def missing_bytes(self, parts: list[_Part]) -> int:
        """Return how many bytes `outputs` will write."""
        size = self.recipe.size
        shape = self.model.output_shape[1:] if self.model else (size, size, 3)
        return sum(
            len(part.rows) * math.prod(shape) * self._dtype(part).itemsize
            for part in parts
            if not self._timing(part).exists()
        )

    def _stored(self, part: _Part) -> np.ndarray:
        array = np.load(self._file(part), mmap_mode="r")
        # Pooled features are small and read often.
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
    """Yield rows of an array in batches, augmented if `view` is 1 or more."""
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
    # A separate function: Windows cannot rename a file that is still mapped.
    array = None
    for start, batch in zip(range(0, count, BATCH), batches, strict=True):
        if not np.isfinite(batch).all():
            raise InputError(f"{bar.desc}: values are not finite in float16; check the weights")
        if array is None:
            array = new_array(file, batch.dtype, (count, *batch.shape[1:]))
        array[start : start + len(batch)] = batch
        bar.update(len(batch))
    array.flush()
