from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fruitveg_tl.config import FINETUNED, PROBE, SCRATCH
from fruitveg_tl.evaluation import ensemble, findings, metrics
from fruitveg_tl.evaluation.findings import CONFIRMED, NOT_MEASURED, QUALIFIED, REFUTED


def run(val_accuracy=(), val_loss=(), frozen=0, **others):
    """Return what the findings read of a run."""
    history = {"stage": [FINETUNED] * max(len(val_accuracy), len(val_loss))}
    if val_accuracy:
        history["val_accuracy"] = list(val_accuracy)
    if val_loss:
        history["val_loss"] = list(val_loss)
    scores = {PROBE: {"accuracy": 0.5, "loss": 1.0}, FINETUNED: {"accuracy": 0.6, "loss": 0.9}}
    return SimpleNamespace(
        history=pd.DataFrame(history),
        scores=scores,
        seconds={FINETUNED: 9, SCRATCH: 9, "frozen": frozen},
        backbone_name="VGG16",
        **others,
    )


EARLY, LATE = run((0.1, 0.6, 0.6, 0.6)), run((0.1, 0.2, 0.6, 0.6))


@pytest.mark.parametrize(
    ("transferred", "verdict"),
    [
        ([EARLY], CONFIRMED),
        ([LATE], REFUTED),
        ([run((0.1, 0.6, 0.6, 0.6), frozen=5)], REFUTED),
        ([run((0.1, 0.2))], REFUTED),
        ([EARLY, LATE], QUALIFIED),
    ],
)
def test_training_is_shorter_if_transfer_is_ahead_in_half_the_time(transferred, verdict):
    scratch = run((0.2, 0.3, 0.4, 0.5), val_targets=[0, 0, 1, 2, 3, 4, 5])
    starts = {f"network {i}": (one, scratch) for i, one in enumerate(transferred)}
    assert findings.training_is_shorter(starts).verdict == verdict


def test_from_scratch_it_may_never_get_beyond_the_most_frequent_class():
    scratch = run((0.1, 0.4), val_targets=[0, 0, 1, 2])
    found = findings.training_is_shorter({"VGG16": (run((0.1, 0.4, 0.4, 0.5)), scratch)})
    assert found.verdict == CONFIRMED
    assert "VGG16 never gets beyond the most frequent class" in found.value
    assert "with transfer after 9 s" in found.value
    poor = findings.training_is_shorter({"VGG16": (run((0.1, 0.4)), scratch)})
    assert poor.verdict == REFUTED and "with transfer never" in poor.value


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [((0.3, 0.2), CONFIRMED), ((0.3, 0.01), QUALIFIED), ((0.3, -0.1), REFUTED)],
)
def test_few_labels_are_judged_at_every_number_of_them(ahead, verdict):
    scratch = pd.DataFrame({"mean": [0.1, 0.5]}, index=[1, 10])
    transfer = scratch + np.array(ahead)[:, None]
    curves = {FINETUNED: transfer, SCRATCH: scratch}
    found = findings.few_labels_suffice(curves)
    assert found.verdict == verdict and "widest with 1 of each class" in found.value
    # A number of labels that was not asked from scratch says nothing.
    more = pd.concat([transfer, pd.DataFrame({"mean": [0.4]}, index=[5])]).sort_index()
    assert findings.few_labels_suffice(curves | {FINETUNED: more}).verdict == verdict


@pytest.mark.parametrize(
    ("known", "verdict"), [((0.5, 0.4), CONFIRMED), ((0.5, 0.7), QUALIFIED), ((0.8, 0.7), REFUTED)]
)
def test_published_figures_are_beaten_all_some_or_none(known, verdict):
    # The mean of several networks is told, and judges nothing.
    beside = pd.DataFrame(
        {
            "source": ["2019", "2021", "here", "here", "here"],
            "network": ["VGG16", "B", "VGG16", "C", ensemble.NAME],
            "fine": [*known, 0.55, 0.6, 0.9],
        }
    )
    found = findings.state_of_the_art(beside)
    assert found.verdict == verdict
    assert "C 60.0%, VGG16 55.0%" in found.value and "90.0%" in found.value
    assert findings.state_of_the_art(None).verdict == NOT_MEASURED


def test_classes_of_the_source_are_compared_with_the_others():
    classes = [f"class {i}" for i in range(12)]
    targets = np.repeat(np.arange(12), 5)
    probabilities = np.eye(12)[np.where(targets < 6, targets, 11)]
    found = run(targets=targets, predicted={PROBE: probabilities.argmax(1)}, classes=classes)
    judge = findings.source_and_target_must_be_alike
    assert judge(found, tuple(classes[:6])).verdict == CONFIRMED
    assert judge(found, tuple(classes[6:])).verdict == REFUTED
    assert judge(found, tuple(classes[:1])).verdict == QUALIFIED  # one class says little
    assert judge(found, ("Kiwi",)).verdict == NOT_MEASURED


def test_care_is_needed_where_one_mistake_costs_much():
    care = findings.settings_need_care
    assert care({"/255": -70.0, "no mixup": 0.4}).verdict == CONFIRMED
    assert "/255 -70.0, no mixup +0.4" in care({"/255": -70.0, "no mixup": 0.4}).value
    assert care({"no mixup": -0.4}).verdict == REFUTED
    assert care({}).verdict == NOT_MEASURED


def test_the_backbone_matters_above_two_points():
    assert findings.backbone_matters({"A": 0.5, "B": 0.53}).verdict == CONFIRMED
    assert findings.backbone_matters({"A": 0.5, "B": 0.51}).verdict == REFUTED


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [((0.2, 0.4, 0.5), CONFIRMED), ((0.2, 0.4, 0.41), QUALIFIED), ((0.2, 0.4, 0.3), REFUTED)],
)
def test_the_amount_of_data_is_judged_by_the_label_curve(accuracies, verdict):
    curve = pd.DataFrame({"mean": accuracies}, index=[1, 5, 20])
    found = findings.amount_of_data_matters(curve)
    assert found.verdict == verdict and "0.400 with 5" in found.value
    assert findings.amount_of_data_matters(None).verdict == NOT_MEASURED


def a_run(probe, tuned):
    """Return a run of 100 test images of two classes, correct on so many of them."""
    targets = np.arange(100) % 2
    probabilities = {
        stage: np.eye(2)[np.where(np.arange(100) < correct, targets, 1 - targets)]
        for stage, correct in ((PROBE, probe), (FINETUNED, tuned))
    }
    scores = {stage: metrics.evaluate(targets, p) for stage, p in probabilities.items()}
    return SimpleNamespace(
        targets=targets,
        predicted={stage: p.argmax(1) for stage, p in probabilities.items()},
        scores=scores,
        classes=["kiwi", "leek"],
        backbone_name="VGG16",
    )


def stages(probe, tuned):
    """Return which of 100 test images are classified correctly in both stages."""
    return {PROBE: np.arange(100) < probe, FINETUNED: np.arange(100) < tuned}


def test_fine_tuning_helps_every_network_some_or_none():
    better, same, worse = (stages(*counts) for counts in ((50, 90), (70, 71), (90, 50)))
    judge = findings.fine_tuning_helps
    assert judge({"A": better}).verdict == CONFIRMED
    assert judge({"B": same}).verdict == REFUTED
    mixed = judge({"A": better, "B": same})
    assert mixed.verdict == QUALIFIED
    assert "A +40.0, B +1.0 (not resolved)" in mixed.value
    assert judge({"A": worse}).verdict == REFUTED


def test_a_model_is_told_by_its_five_metrics():
    text = findings.about_model([a_run(50, 90), a_run(50, 80)])
    for figure in ("accuracy 0.850", "precision 0.8", "recall 0.850", "F1 0.8", "50.0%", "+35.0"):
        assert figure in text


def test_ties_are_told_as_ties():
    rank = findings.ranking
    assert rank({"A": 0.5, "B": 0.9}) == (
        "**B is the most accurate: 90.0% of the test images**, followed by A (50.0%)."
    )
    assert rank({"A": 0.9, "B": 0.9, "C": 0.8, "D": 0.8}) == (
        "**A and B are alike and the most accurate: 90.0% of the test images**, followed by "
        "C and D (80.0%)."
    )
    tell = findings.strongest_and_weakest
    assert tell(pd.Series({"a": 1.0, "b": 1.0, "c": 1.0})) == "all alike (F1 1.00)"
    assert tell(pd.Series({"a": 1.0, "b": 0.5, "c": 0.2})) == (
        "strongest: a (1.00); weakest: c (0.20) (F1)"
    )


def test_what_is_not_measured_says_its_rule_and_no_value():
    finding = findings.few_labels_suffice({})
    assert finding.verdict == NOT_MEASURED and not finding.value
    assert str(finding).startswith("**Not measured here** (ahead of scratch")
    measured = findings.backbone_matters({"A": 0.5, "B": 0.53})
    told = (
        "between 0.500 and 0.530. A part of that may be their source weights', which were converted"
    )
    assert f"{told} in different ways. **Confirmed here** (accuracies differ by" in str(measured)
    listed = findings.in_words([finding, measured])
    assert listed == f"- **The choice of backbone matters.** {measured}"
    assert findings.in_words([finding]) == "None measured."
