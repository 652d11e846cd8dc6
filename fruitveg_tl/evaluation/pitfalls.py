"""Mistakes of public notebooks on such images, made on purpose: what they show, what is true."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from fruitveg_tl.data.dataset import Images
from fruitveg_tl.evaluation import baselines, metrics
from fruitveg_tl.utils.backend import keras

RESAMPLES = 1000


@dataclass(frozen=True)
class Pitfall:
    """One mistake.

    Attributes:
        name: what was done.
        shown: the accuracy that its author sees.
        true: what the same network is worth to a user.
    """

    name: str
    shown: float
    true: float


def classes_at_the_root(dataset: Images) -> list[str]:
    """Return what a loader takes for classes when it is pointed one folder too high.

    `keras.utils.image_dataset_from_directory` makes a class of every folder. It is shown folders of
    the same names with an image in each, since it refuses a set that is in TIFF or WebP alone.
    """
    with TemporaryDirectory() as root:
        for folder in filter(Path.is_dir, dataset.root.iterdir()):
            (Path(root) / folder.name).mkdir()
            Image.new("RGB", (8, 8)).save(Path(root) / folder.name / "0.png")
        return keras.utils.image_dataset_from_directory(root, verbose=False).class_names


def splits_as_classes(dataset: Images) -> Pitfall:
    """Tell the splits apart by colour alone, as a loader at the root of the data asks for."""
    split = dataset.index["split"]
    mixed = np.random.default_rng(0).permutation(split)
    index = dataset.index.assign(label=split, split=mixed)
    folders = replace(dataset, index=index, classes=("test", "train", "val"))
    predicted = baselines.colour_histogram(folders).argmax(1)
    shown = metrics.accuracy(folders.targets[folders.rows("test")], predicted)
    return Pitfall("generator at the data root (colours alone)", shown, 0.0)


def divided_by_255(
    model: keras.Model, pixels: np.ndarray, targets: np.ndarray, shown: float
) -> Pitfall:
    """Divide by 255 before a network that holds its own preprocessing.

    Args:
        model: takes raw RGB.
        pixels: raw RGB (n, size, size, 3) in 0..255.
        targets: true class indices, shape (n,).
        shown: the network's accuracy on raw RGB.
    """
    predicted = model.predict(pixels / 255, verbose=0).argmax(1)
    return Pitfall("/255 at serving", shown, metrics.accuracy(targets, predicted))


def shuffled_predictions(targets: np.ndarray, predicted: np.ndarray) -> Pitfall:
    """Compare labels with predictions that a shuffling generator gave in another order."""
    mixed = np.random.default_rng(0).permutation(predicted)
    shown, true = metrics.accuracy(targets, mixed), metrics.accuracy(targets, predicted)
    return Pitfall("predictions shuffled against labels", shown, true)


def chosen_by_the_test_split(correct: np.ndarray) -> Pitfall:
    """Choose the best network by a random half of the test split, many times over.

    Args:
        correct: is each test image classified correctly? Shape (networks, n), in 0..1.

    Returns:
        the chosen network's accuracy on the half that chose it, and on the other.
    """
    rng, shown, true = np.random.default_rng(0), [], []
    for _ in range(RESAMPLES):
        half = rng.permutation(correct.shape[1]) < correct.shape[1] / 2
        best = correct[:, half].mean(1).argmax()
        shown.append(correct[best, half].mean())
        true.append(correct[best, ~half].mean())
    return Pitfall("validation = test", float(np.mean(shown)), float(np.mean(true)))


def jpg_only(paths: Sequence[str], correct: np.ndarray) -> Pitfall | None:
    """Test on the files whose names end in .jpg alone; None if there are none.

    Args:
        paths: of the test images.
        correct: is each classified correctly? Shape (n,), in 0..1.
    """
    seen = np.array([path.endswith(".jpg") for path in paths])
    if not seen.any():
        return None
    return Pitfall("*.jpg only", float(correct[seen].mean()), float(correct.mean()))
