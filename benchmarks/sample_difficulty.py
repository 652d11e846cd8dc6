"""Is the drawn sample trivial? Colour alone against the networks of finished sample runs."""

from pathlib import Path

import numpy as np
from record import save
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fruitveg_tl import datasets, results
from fruitveg_tl.errors import InputError

BINS = 4  # per channel: 64 colours


def colour_histogram_accuracy(dataset: datasets.Dataset) -> float:
    """Test accuracy of a logistic regression on the colours of the whole photograph."""
    pixels = dataset.pixels(64) // (256 // BINS)
    codes = (pixels @ np.array([BINS**2, BINS, 1])).reshape(len(pixels), -1)
    counts = np.stack([np.bincount(code, minlength=BINS**3) for code in codes])
    features = np.sqrt(counts / codes.shape[1])
    train, test = dataset.rows("train"), dataset.rows("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(features[train], dataset.labels[train])
    return model.score(features[test], dataset.labels[test])


def main() -> None:
    """Store one row for colour, one for each finished run."""
    dataset = datasets.load("sample")
    rows = [
        {"Model": "chance", "Accuracy": 1 / len(dataset.classes)},
        {
            "Model": "colour histogram, logistic regression",
            "Accuracy": colour_histogram_accuracy(dataset),
        },
    ]
    runs = results.read()
    if not len(runs) or "sample" not in set(runs["dataset"]):
        raise InputError("no finished sample run; make them first: make run")
    for _, run in runs[runs["dataset"] == "sample"].iterrows():
        title = f"{run['model']}, {run['stage']} ({run['weights']})"
        rows.append({"Model": title, "Accuracy": run["accuracy"]})
    save(Path(__file__).stem, [row | {"Accuracy": f"{row['Accuracy']:.3f}"} for row in rows])


if __name__ == "__main__":
    main()
