"""What is usually said of transfer learning, each claim judged by a rule on measured figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fruitveg_tl.config import FINETUNED, PROBE, SCRATCH
from fruitveg_tl.evaluation import ensemble, metrics, significance
from fruitveg_tl.evaluation.published import HERE
from fruitveg_tl.studies import Run
from fruitveg_tl.utils.markdown import listed

CONFIRMED, QUALIFIED, REFUTED, NOT_MEASURED = "confirmed", "qualified", "refuted", "not measured"

EARLY = 0.5  # of the time that training from scratch takes
CLEAR_GAP = 5.0  # points of accuracy
SIGNIFICANT = 0.05  # of a p-value
BACKBONE_GAP = 0.02  # of accuracy


@dataclass(frozen=True)
class Finding:
    """One claim and what became of it.

    Attributes:
        claim: what is said of transfer learning.
        rule: by which it is judged, with its threshold.
        value: what was measured, in a sentence or two; empty if nothing was.
        verdict: `CONFIRMED`, `QUALIFIED`, `REFUTED` or `NOT_MEASURED`.
    """

    claim: str
    rule: str
    value: str = ""
    verdict: str = NOT_MEASURED

    def __str__(self) -> str:
        return f"{self.value} **{self.verdict.capitalize()} here** ({self.rule}).".strip()


def _verdict(holds: bool, limited: bool = False) -> str:
    return (QUALIFIED if limited else CONFIRMED) if holds else REFUTED


def in_words(judged: Iterable[Finding]) -> str:
    """Write what was measured as a Markdown list, a claim an item."""
    measured = [f"- **{x.claim}.** {x}" for x in judged if x.verdict != NOT_MEASURED]
    return "\n".join(measured) or "None measured."


def training_is_shorter(starts: Mapping[str, tuple[Run, Run]]) -> Finding:
    """Judge by when transfer passes the best validation accuracy from scratch.

    Args:
        starts: name of a network to its run with transfer, and its run from scratch.
    """
    told, early = [], []
    for name, (transfer, scratch) in starts.items():
        goal = scratch.history["val_accuracy"].max()
        guess = np.bincount(scratch.val_targets).max() / len(scratch.val_targets)
        learnt = goal > guess
        passed, alone = _seconds_until(transfer, max(goal, guess)), _seconds_until(scratch, goal)
        when = f"after {passed:.0f} s" if np.isfinite(passed) else "never"
        told.append(
            f"{name} reaches {goal:.2f} after {alone:.0f} s, and with transfer {when}"
            if learnt
            else f"{name} never gets beyond the most frequent class, and with transfer {when}"
        )
        early.append(passed <= alone * EARLY if learnt else np.isfinite(passed))
    return Finding(
        "Training is shorter",
        f"every network passes its best validation accuracy from scratch within {EARLY:.0%} of the "
        "time that takes, the frozen part included; qualified, if some do",
        f"Validation accuracy from scratch: {'; '.join(told)}.",
        _verdict(any(early), not all(early)),
    )


def _seconds_until(run: Run, accuracy: float) -> float:
    """Return the training time at which the validation accuracy reaches a value, or infinity.

    The epochs of a phase count alike.
    """
    spent, stage = run.seconds, run.history["stage"]
    each = stage.map(lambda name: spent[name]) / stage.map(stage.value_counts())
    there = np.flatnonzero(run.history["val_accuracy"] >= accuracy)
    return spent["frozen"] + each[: there[0] + 1].sum() if len(there) else np.inf


def few_labels_suffice(curves: Mapping[str, pd.DataFrame]) -> Finding:
    """Judge by how far transfer is ahead of training from scratch at every number of labels.

    Args:
        curves: stage to a table with a column mean, the test accuracy; its index is the number of
            training images per class, rising; what scratch lacks is left out. Empty if nothing was
            measured.
    """
    claim = "It generalises better from few labels"
    rule = (
        "ahead of scratch at every number of labels that both were trained with; qualified, if "
        f"once by less than {CLEAR_GAP:.0f} points"
    )
    if not curves:
        return Finding(claim, rule)
    ahead = 100 * (curves[FINETUNED]["mean"] - curves[SCRATCH]["mean"]).dropna()
    return Finding(
        claim,
        rule,
        f"With all images, transfer is {ahead.iloc[-1]:+.1f} points from scratch on the test "
        f"split; with {ahead.index[0]:.0f} of each class {ahead.iloc[0]:+.1f}. The gap is widest "
        f"with {ahead.idxmax():.0f} of each class.",
        _verdict((ahead > 0).all(), ahead.min() < CLEAR_GAP),
    )


def state_of_the_art(beside: pd.DataFrame | None) -> Finding:
    """Judge by the published accuracies that the networks reach.

    Args:
        beside: from `published.beside_published`; None if nothing was measured.
    """
    claim = "It gives the state of the art on small data"
    rule = "the best network is ahead of every published figure; qualified, if of some"
    if beside is None:
        return Finding(claim, rule)
    fine = beside.set_index("network")["fine"]
    ours = fine[(beside["source"] == HERE).to_numpy()]
    networks, known = ours.drop(ensemble.NAME), fine[(beside["source"] != HERE).to_numpy()]
    beaten = (known < networks.max()).sum()
    told = ", ".join(f"{name} {value:.1%}" for name, value in networks[::-1].items())
    return Finding(
        claim,
        rule,
        f"On the official split and its fine classes: {told}, the mean of their probabilities "
        f"{ours[ensemble.NAME]:.1%}. {networks.idxmax()} is ahead of {beaten} of {len(known)} "
        f"published figures, the best of which is {known.max():.1%} ({known.idxmax()}); all of "
        "those were transferred too.",
        _verdict(beaten > 0, beaten < len(known)),
    )


def source_and_target_must_be_alike(run: Run, in_source: tuple[str, ...]) -> Finding:
    """Judge by the linear probe's F1 on classes that the source has and on others.

    Args:
        run: with a linear probe.
        in_source: classes that the source data set names.
    """
    claim = "Source and target must be alike"
    rule = f"higher F1 on classes that the source names; qualified, if p ≥ {SIGNIFICANT}"
    report = metrics.classification_report(run.targets, run.predicted[PROBE], run.classes)
    f1, known = report["f1"], report.index.isin(in_source)
    if not known.any():
        return Finding(claim, rule)
    p = stats.mannwhitneyu(f1[known], f1[~known]).pvalue
    return Finding(
        claim,
        rule,
        f"The probe's mean F1 is {f1[known].mean():.2f} on {known.sum()} classes that ImageNet "
        f"names and {f1[~known].mean():.2f} on the {(~known).sum()} others (Mann–Whitney p = "
        f"{p:.2g}).",
        _verdict(f1[known].mean() > f1[~known].mean(), p >= SIGNIFICANT),
    )


def settings_need_care(changes: Mapping[str, float]) -> Finding:
    """Judge by what one common mistake costs.

    Args:
        changes: what was done otherwise to the points of accuracy that it changes; empty if nothing
            was measured.
    """
    claim = "It needs careful settings, or it over- or underfits"
    rule = f"one common mistake costs more than {CLEAR_GAP:.0f} points"
    if not changes:
        return Finding(claim, rule)
    told = ", ".join(f"{name} {points:+.1f}" for name, points in changes.items())
    return Finding(
        claim,
        rule,
        f"One mistake at a time changes accuracy by these points: {told}.",
        _verdict(min(changes.values()) < -CLEAR_GAP),
    )


def gains_by_fine_tuning(
    correct: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, tuple[float, bool]]:
    """Return what fine-tuning adds to the linear probe, see `significance.against`.

    Args:
        correct: name of a network to, for both stages, the fraction of its seeds that classify
            each test image correctly, shape (n,).
    """
    both = (PROBE, FINETUNED)
    return {
        name: significance.against({stage: stages[stage] for stage in both}, PROBE)[FINETUNED]
        for name, stages in correct.items()
    }


def fine_tuning_helps(correct: Mapping[str, Mapping[str, np.ndarray]]) -> Finding:
    """Judge by the gain of fine-tuning over the linear probe, network by network.

    Args:
        correct: see `gains_by_fine_tuning`.
    """
    gains = gains_by_fine_tuning(correct)
    helped = [points > 0 and resolved for points, resolved in gains.values()]
    return Finding(
        "Unfreezing the upper layers beats the frozen backbone",
        "ahead of the linear probe by the paired bootstrap for every network; qualified, if for "
        "some",
        f"Points of accuracy by fine-tuning: {significance.in_points(gains)}.",
        _verdict(any(helped), not all(helped)),
    )


def backbone_matters(accuracies: Mapping[str, float]) -> Finding:
    """Judge by the range of accuracies of several backbones.

    Args:
        accuracies: of the fine-tuned networks.
    """
    low, high = min(accuracies.values()), max(accuracies.values())
    return Finding(
        "The choice of backbone matters",
        f"accuracies differ by more than {100 * BACKBONE_GAP:.0f} points",
        f"Fine-tuned, the {len(accuracies)} networks lie between {low:.3f} and {high:.3f}. A part "
        "of that may be their source weights', which were converted in different ways.",
        _verdict(high - low > BACKBONE_GAP),
    )


def amount_of_data_matters(curve: pd.DataFrame | None) -> Finding:
    """Judge by whether accuracy rises with every step of the label curve.

    Args:
        curve: a column mean, the test accuracy of the fine-tuned network; its index is the number
            of training images per class, rising. None if nothing was measured.
    """
    claim = "The amount of data matters"
    rule = "accuracy rises with every step of the label curve; qualified, if it levels off"
    if curve is None:
        return Finding(claim, rule)
    steps, last = curve["mean"].diff().iloc[1:], 100 * curve["mean"].diff().iloc[-1]
    told = ", ".join(f"{value:.3f} with {n:.0f}" for n, value in curve["mean"].items())
    return Finding(
        claim,
        rule,
        f"Test accuracy by training images of each class: {told}. The last step still gives "
        f"{last:+.1f} points.",
        _verdict((steps > 0).all(), last < CLEAR_GAP),
    )


def ranking(accuracies: Mapping[str, float]) -> str:
    """Name the most accurate networks in Markdown, then the others; ties are named together."""
    shown: dict[str, list[str]] = {}
    for name in sorted(accuracies, key=lambda name: -accuracies[name]):
        shown.setdefault(f"{accuracies[name]:.1%}", []).append(name)
    places = [(" and ".join(names), value, len(names)) for value, names in shown.items()]
    best, value, count = places[0]
    verb = "is" if count == 1 else "are alike and"
    others = [f"{name} ({value})" for name, value, _ in places[1:]]
    followed = f", followed by {', then '.join(others)}" if others else ""
    return f"**{best} {verb} the most accurate: {value} of the test images**{followed}."


def strongest_and_weakest(f1: pd.Series) -> str:
    """Name up to three classes with the highest F1 and with the lowest, none of them twice."""
    if f1.max() - f1.min() < 0.005:
        return f"all alike (F1 {f1.max():.2f})"
    count = min(3, len(f1) // 2)
    return f"strongest: {listed(f1.nlargest(count))}; weakest: {listed(f1.nsmallest(count))} (F1)"


def about_model(runs: Sequence[Run]) -> str:
    """Say in Markdown what one network reached, averaged over its seeds, and where it fails."""
    mean = pd.DataFrame([run.scores[FINETUNED] for run in runs]).mean()
    frozen = np.mean([run.scores[PROBE]["accuracy"] for run in runs])
    f1 = pd.concat(
        metrics.classification_report(run.targets, run.predicted[FINETUNED], run.classes)["f1"]
        for run in runs
    )
    f1 = f1.groupby(level=0).mean()
    return (
        f"**{runs[0].backbone_name}**: accuracy {mean['accuracy']:.3f}, loss {mean['loss']:.3f}, "
        f"precision {mean['precision_macro']:.3f}, recall {mean['recall_macro']:.3f}, F1 "
        f"{mean['f1_macro']:.3f}. Frozen, it is correct on {frozen:.1%} of the images; unfreezing "
        f"changes that by {100 * (mean['accuracy'] - frozen):+.1f} points. Classes, "
        f"{strongest_and_weakest(f1)}."
    )
