"""Whether a network's probabilities can be taken at their word.

Probabilities have shape (n, classes), targets (n,). The *confidence* of a prediction is its
probability.
"""

import numpy as np
import pandas as pd
from scipy import optimize, special

BINS = 15


def reliability(targets: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Compare confidence with accuracy in bins of equal width (Guo et al. 2017).

    Returns:
        one row per bin that holds a prediction: images, confidence and accuracy (their means).
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    # Bins are open on the left: a confidence of exactly 1 belongs to the last one.
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
    """Fit the temperature that minimises the cross-entropy: above 1, the network was too sure.

    To be fitted on the validation split, never on the images it is judged by (Guo et al.).
    """

    def loss(log_temperature: float) -> float:
        scaled = special.log_softmax(_logits(probabilities) / np.exp(log_temperature), axis=1)
        return -scaled[np.arange(len(targets)), targets].mean()

    minimum = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(minimum.x))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities at another temperature; the order of the classes stays."""
    return special.softmax(_logits(probabilities) / temperature, axis=1)


def risk_coverage(targets: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Follow the error rate as the least sure predictions are withheld (El-Yaniv & Wiener 2010).

    Returns:
        one row per number of predictions kept, surest first: coverage (fraction kept), risk
        (fraction of those that are wrong), confidence (the lowest among them).
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


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # The smallest float32 that is not subnormal stands for what was rounded to 0.
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
