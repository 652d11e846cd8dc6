"""Images a second: decoded and resized, and read again in later epochs.

Decoding takes every image to one size and the same square: by this package (checks and EXIF
included, a few threads), by Pillow and OpenCV on one thread, and by TensorFlow in tf.data. Later
epochs read the package's mapped array in shuffled batches, against
`image_dataset_from_directory`, which decodes again each time. The ways take turns, several rounds;
the files are in the page cache for all of them.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import keras
import numpy as np
import tensorflow as tf
from harness import DATASET, link_images, measure, save, span, start
from PIL import Image, ImageOps

from fruitveg_tl.data import images, registry
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.training.fit import Batches

SIZE, BATCH, COUNT, ROUNDS = 224, 32, 800, 15


def package(paths: list[Path]) -> None:
    """As a run does it, in its first call."""
    with tempfile.TemporaryDirectory() as folder:
        images.pixel_array(paths, SIZE, Path(folder) / "pixels.npy")


def pillow(paths: list[Path]) -> None:
    """The plainest Pillow: no draft mode, no checks."""
    for path in paths:
        with Image.open(path) as image:
            ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BICUBIC)


def opencv(paths: list[Path]) -> None:
    """OpenCV on one thread, as fast as it gets: area interpolation, in colour."""
    import cv2

    cv2.setNumThreads(1)
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[top : top + side, left : left + side]
        cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)[..., ::-1].copy()


def tf_data(paths: list[Path]) -> None:
    """TensorFlow's own decoder, in parallel."""

    def read(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        shape = tf.shape(image)
        side = tf.minimum(shape[0], shape[1])
        square = tf.image.resize_with_crop_or_pad(image, side, side)
        return tf.image.resize(square, (SIZE, SIZE), "bicubic", antialias=True)

    names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    for _ in names.map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH):
        pass


def race() -> list[dict]:
    """Measure decoding, then a later epoch, the ways taking turns."""
    dataset = registry.load(DATASET)
    paths = [dataset.root / path for path in dataset.index["path"][:COUNT]]
    decoders = {"this package": package, "Pillow": pillow, "OpenCV": opencv, "tf.data": tf_data}
    rows = _race("decode and resize", len(paths), {k: (v, paths) for k, v in decoders.items()})
    with tempfile.TemporaryDirectory() as folder:
        rows += _race("a later epoch", len(paths), _readers(Path(folder), dataset, paths))
    return rows


def main() -> None:
    """Measure the table's rows and store them."""
    save(Path(__file__).stem, measure(race)["found"])


def _readers(folder: Path, dataset: Images, paths: list[Path]) -> dict:
    pixels = images.pixel_array(paths, SIZE, folder / "pixels.npy")
    rows, labels = (
        np.arange(len(paths)),
        np.eye(len(dataset.classes))[dataset.targets[: len(paths)]],
    )
    labelled = zip(dataset.index["label"], paths, strict=False)
    link_images(folder, (("tree", label, path) for label, path in labelled))
    generator = keras.utils.image_dataset_from_directory(
        folder / "tree", image_size=(SIZE, SIZE), batch_size=BATCH, verbose=False
    )

    def arrays() -> Iterator:
        batches = Batches([pixels], rows, labels, BATCH, seed=0)
        return (batches[index] for index in range(len(batches)))

    def read(batches: Callable[[], Iterator]) -> None:
        for _ in batches():
            pass

    directory = generator.prefetch(tf.data.AUTOTUNE)
    return {
        "this package": (read, arrays),
        "image_dataset_from_directory": (read, lambda: directory),
    }


def _race(what: str, count: int, ways: dict) -> list[dict]:
    rates = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, (way, argument) in ways.items():
            start = time.perf_counter()
            way(argument)
            if turn:  # the first one fills caches
                rates[name].append(count / (time.perf_counter() - start))
    own = median(rates["this package"])
    return [
        {
            "What": what,
            "By": name,
            "Images a second": f"{median(found):,.0f}",
            "Lowest to highest": span(found, ",.0f"),
            "This package is faster by": f"{own / median(found):.2f}",
            "Images": f"{count} of {DATASET}, {SIZE} px",
        }
        for name, found in rates.items()
    ]


if __name__ == "__main__":
    start(main, race)
