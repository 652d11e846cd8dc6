"""Baselines: test predictions without a network."""

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fruitveg_tl.config import TEST, TRAIN
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.studies import Run

SIZE = 64  # pixels: enough for the colours
LEVELS = 4  # per channel: 64 colours


def majority(dataset: Images) -> np.ndarray:
    """Return the training fraction of each class as its probability, shape (n_test, classes)."""
    return _predict_test(
        DummyClassifier(strategy="prior"), dataset, np.zeros((len(dataset.index), 1))
    )


def colour_histogram(dataset: Images) -> np.ndarray:
    """Return the probabilities of a logistic regression on colour alone, (n_test, classes).

    Its features are the square roots of the fractions of 64 colours (Hellinger distance).
    """
    pixels = dataset.pixels(SIZE) // (256 // LEVELS)
    codes = (pixels @ np.array([LEVELS**2, LEVELS, 1])).reshape(len(pixels), -1)
    counts = np.stack([np.bincount(code, minlength=LEVELS**3) for code in codes])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return _predict_test(model, dataset, np.sqrt(counts / codes.shape[1]))


def accuracies(images: Images) -> pd.Series:
    """Return the test accuracy of each baseline, by name."""
    targets = images.targets[images.rows(TEST)]
    found = {"majority class": majority(images), "colour histogram": colour_histogram(images)}
    return pd.Series({name: (p.argmax(1) == targets).mean() for name, p in found.items()})


def of_study(run: Run) -> pd.Series | None:
    """Return the `accuracies` stored with a study; None if it has none."""
    file = run.folder / "baselines.csv"
    return pd.read_csv(file, index_col="baseline")["accuracy"] if file.exists() else None


def _predict_test(model, dataset: Images, features: np.ndarray) -> np.ndarray:
    train, test = dataset.rows(TRAIN), dataset.rows(TEST)
    model.fit(features[train], dataset.targets[train])
    probabilities = np.zeros((len(test), len(dataset.classes)))
    probabilities[:, model.classes_] = model.predict_proba(features[test])
    return probabilities
