"""Metrics: accuracy, F1, confusion, intervals, calibration and ensembles.

Probabilities have shape (n, classes), with rows that sum to 1; targets have shape (n,). The
*confidence* of a prediction is its probability.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from statsmodels.stats.proportion import proportion_confint

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.studies import Run

LEVEL = 0.05
SURE = 0.95  # precision of the answers of a `Classifier` that are sure, on validation images
ENSEMBLE = "mean of the probabilities"


def evaluate(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Score predictions; a row's first maximum is the prediction.

    Returns accuracy, loss (cross-entropy in nats), top5_accuracy, and precision, recall and F1 as
    macro and weighted averages, with scikit-learn's `zero_division=0`. Raises ValueError if the
    shapes disagree, a label has no column, or a probability is not finite.
    """
    targets, probabilities = _checked(targets, probabilities)
    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(1)
    # Normalised in float64: float32 row sums differ from 1 by more than scikit-learn tolerates.
    rows = probabilities / probabilities.sum(1, keepdims=True)
    result = {
        "accuracy": accuracy_score(targets, predicted),
        "loss": log_loss(targets, rows, labels=classes),
        "top5_accuracy": top_k_accuracy_score(targets, probabilities, k=5, labels=classes)
        if len(classes) > 5
        else 1.0,
    }
    for average in ("macro", "weighted"):
        scores = precision_recall_fscore_support(
            targets, predicted, labels=classes, average=average, zero_division=0
        )
        for name, score in zip(("precision", "recall", "f1"), scores, strict=False):
            result[f"{name}_{average}"] = score
    return {name: float(value) for name, value in result.items()}


def classification_report(
    targets: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Return precision, recall, F1 and support of every class, indexed by its name."""
    scores = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    columns = dict(zip(("precision", "recall", "f1", "support"), scores, strict=True))
    return pd.DataFrame(columns, index=pd.Index(classes, name="class"))


def confusion(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts of shape (classes, classes): rows are true classes, columns predictions."""
    return confusion_matrix(targets, predicted, labels=np.arange(classes))


def confused_pairs(counts: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """List the pairs of confused classes, most frequent first, from the counts of `confusion`.

    Columns: true, predicted, images (how many), fraction (of the true class's images).
    """
    rows, columns = np.nonzero(counts - np.diag(np.diag(counts)))
    mistakes = counts[rows, columns]
    names = np.asarray(classes)
    pairs = pd.DataFrame(
        {
            "true": names[rows],
            "predicted": names[columns],
            "images": mistakes,
            "fraction": mistakes / counts.sum(1)[rows],
        }
    )
    return pairs.sort_values("images", ascending=False, kind="stable", ignore_index=True)


def accuracy(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the fraction of correct predictions."""
    return float((targets == predicted).mean())


def wilson_interval(correct: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy on `count` images, also at 0 and 1 (Wilson 1927)."""
    low, high = proportion_confint(correct * count, count, LEVEL, method="wilson")
    return float(low), float(high)


def macro_f1(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return macro F1 over the classes that occur, a hundred times faster than scikit-learn."""
    classes = 1 + max(targets.max(), predicted.max())
    correct = np.bincount(targets[targets == predicted], minlength=classes)
    either = np.bincount(targets, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * correct[either > 0] / either[either > 0]).mean())


def reliability(targets: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Compare confidence with accuracy in bins of equal width (Guo et al. 2017).

    Returns one row per non-empty bin: images (their number), mean confidence and accuracy.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    # Bins are open on the left: a confidence of 1 is in the last bin.
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    predictions = pd.DataFrame({"bin": bin_of, "confidence": confidence, "accuracy": correct})
    return predictions.groupby("bin").agg(
        images=("accuracy", "size"),
        confidence=("confidence", "mean"),
        accuracy=("accuracy", "mean"),
    )


def expected_calibration_error(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean gap between confidence and accuracy over the bins, 0 to 1 (Guo et al.)."""
    table = reliability(targets, probabilities)
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gaps, weights=table["images"]))


def temperature(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Fit the temperature that minimises the cross-entropy; above 1 means overconfidence.

    Fit it on the validation split, never on the test split (Guo et al. 2017).
    """

    def loss(log_temperature: float) -> float:
        scaled = special.log_softmax(_logits(probabilities) / np.exp(log_temperature), axis=1)
        return -scaled[np.arange(len(targets)), targets].mean()

    minimum = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(minimum.x))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities at another temperature; this keeps the order of the classes."""
    return special.softmax(_logits(probabilities) / temperature, axis=1)


def risk_coverage(targets: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Return the error rate by the fraction of predictions kept (El-Yaniv & Wiener 2010).

    One row per number of predictions kept, most confident first: coverage (fraction kept), risk
    (error rate of those kept), confidence (their lowest).
    """
    confidence = probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    mistakes = (probabilities.argmax(1) != targets)[order]
    kept = np.arange(1, len(targets) + 1)
    return pd.DataFrame(
        {
            "coverage": kept / len(targets),
            "risk": np.cumsum(mistakes) / kept,
            "confidence": confidence[order],
        }
    )


def sure_from(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return the lowest confidence with a precision of `SURE` among the images at or above it.

    Fit it on the validation split, never on the test split.

    Returns:
        min_confidence (1.01, which no answer reaches, if no confidence has that precision),
        coverage (fraction of the images at or above it), precision (wanted), images (their number).
    """
    curve = risk_coverage(targets, probabilities).drop_duplicates("confidence", keep="last")
    enough = curve[curve["risk"] <= 1 - SURE + 1e-9]
    found = enough.iloc[-1] if len(enough) else {"confidence": 1.01, "coverage": 0.0}
    return {
        "min_confidence": float(found["confidence"]),
        "coverage": float(found["coverage"]),
        "precision": SURE,
        "images": len(targets),
    }


def mean_probabilities(every: Mapping[str, Sequence[Run]]) -> list[np.ndarray]:
    """Average fine-tuned networks per seed, (n, classes) each; all list their runs in one order."""
    seeds = zip(*every.values(), strict=True)
    return [np.mean([run.probabilities[FINETUNED] for run in runs], axis=0) for runs in seeds]


def _checked(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not len(targets):
        raise ValueError(
            f"targets {targets.shape} and probabilities {probabilities.shape} do not match"
        )
    if targets.min() < 0 or targets.max() >= probabilities.shape[1]:
        raise ValueError(
            f"targets {targets.min()}..{targets.max()} but {probabilities.shape[1]} columns"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite")
    return targets, probabilities


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # The smallest normal float32 replaces probabilities rounded to 0.
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
