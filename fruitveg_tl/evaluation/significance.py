"""Significance of differences between networks, given the sampling of test images."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fruitveg_tl.evaluation import metrics
from fruitveg_tl.evaluation.metrics import LEVEL
from fruitveg_tl.studies import Run

RESAMPLES = 2000


def correct_fraction(runs: Sequence[Run], stage: str) -> np.ndarray:
    """Return the fraction of runs that are right about each test image at a stage, (n,) in 0..1."""
    return np.mean([run.predicted[stage] == run.targets for run in runs], axis=0)


def paired_bootstrap(gap: np.ndarray):
    """Bootstrap the mean of paired differences (n,): SciPy's seeded percentile bootstrap, 95 %."""
    return stats.bootstrap(
        (gap,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0, batch=100
    )


def compare(correct: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Compare every two networks, given the `correct_fraction` of each on the same test images.

    Paired percentile bootstrap of the difference in accuracy over the images (Efron 1979), with
    Holm's correction over all pairs (Holm 1979).

    Returns one row per pair, the better one first: better, worse, difference (of accuracies), low
    and high (95 % interval), p (two-sided, at least 1 / RESAMPLES), p_holm, significant (p_holm
    below 0.05). Raises ValueError if the numbers of images differ.
    """
    if len({len(values) for values in correct.values()}) > 1:
        raise ValueError("the networks were not tested on the same images")
    rows = []
    for pair in combinations(correct, 2):
        better, worse = sorted(pair, key=lambda name: -np.mean(correct[name]))
        gap = np.asarray(correct[better], float) - np.asarray(correct[worse], float)
        resampled = paired_bootstrap(gap)
        below = (resampled.bootstrap_distribution <= 0).mean()
        low, high = resampled.confidence_interval
        p = min(1.0, max(2 * below, 1 / RESAMPLES))
        rows.append([better, worse, gap.mean(), low, high, p])
    pairs = pd.DataFrame(rows, columns=["better", "worse", "difference", "low", "high", "p"])
    pairs["p_holm"] = multipletests(pairs["p"], LEVEL, method="holm")[1] if len(pairs) else []
    return pairs.assign(significant=pairs["p_holm"] < LEVEL)


def against(correct: Mapping[str, np.ndarray], reference: str) -> dict[str, tuple[float, bool]]:
    """Return each network's lead over `reference` in percentage points, and its significance.

    Holm's correction covers all pairs of `correct`, see `compare`.
    """
    pairs, changes = compare(correct), {}
    for pair in pairs[pairs[["better", "worse"]].eq(reference).any(axis=1)].itertuples():
        ahead = pair.worse == reference
        name = pair.better if ahead else pair.worse
        changes[name] = (100 * pair.difference * (1 if ahead else -1), pair.significant)
    return changes


def in_points(changes: Mapping[str, tuple[float, bool]]) -> str:
    """Format what `against` returns: "VGG16 +5.1, ResNet50 +0.4 (not significant)"."""
    return ", ".join(
        f"{name} {points:+z.1f}{'' if significant else ' (not significant)'}"
        for name, (points, significant) in changes.items()
    )


def compare_macro_f1(targets: np.ndarray, predicted: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Compare every two networks by macro F1: paired percentile bootstrap over the images.

    `targets` are (n,), a network's predictions (seeds, n); its F1 is the mean over the seeds.
    Returns one row per pair: better, worse, difference, low and high (95 % interval), significant
    (the interval excludes 0).
    """
    rng = np.random.default_rng(0)
    everything = np.arange(len(targets))
    samples = [everything, *rng.integers(len(targets), size=(RESAMPLES, len(targets)))]

    def mean_f1(seeds: np.ndarray, sample: np.ndarray) -> float:
        return np.mean([metrics.macro_f1(targets[sample], seed[sample]) for seed in seeds])

    scored = {}
    for name, seeds in predicted.items():
        scored[name] = np.array([mean_f1(seeds, sample) for sample in samples])
    rows = []
    for pair in combinations(scored, 2):
        better, worse = sorted(pair, key=lambda name: -scored[name][0])
        gap = scored[better] - scored[worse]
        low, high = np.quantile(gap[1:], [LEVEL / 2, 1 - LEVEL / 2])
        rows.append([better, worse, gap[0], low, high, low > 0])
    columns = ["better", "worse", "difference", "low", "high", "significant"]
    return pd.DataFrame(rows, columns=columns)


def verdict(pairs: pd.DataFrame) -> str:
    """Name in a sentence the differences of `compare` that are not significant."""
    doubtful = pairs[~pairs["significant"]]
    if not len(doubtful):
        return f"All {len(pairs)} differences are significant."
    names = "; ".join(f"{pair.better} over {pair.worse}" for pair in doubtful.itertuples())
    return f"{len(doubtful)} of {len(pairs)} differences are **not significant**: {names}."
