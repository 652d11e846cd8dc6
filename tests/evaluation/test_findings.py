from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fruitveg_tl.config import FINETUNED, PROBE, SCRATCH
from fruitveg_tl.evaluation import findings
from fruitveg_tl.evaluation.findings import CONFIRMED, NOT_MEASURED, QUALIFIED, REFUTED


def run(val_accuracy=(), val_loss=(), alpha=0.5, **others):
    """Return what the findings read of a run."""
    history = {"stage": [FINETUNED] * max(len(val_accuracy), len(val_loss))}
    if val_accuracy:
        history["val_accuracy"] = list(val_accuracy)
    if val_loss:
        history["val_loss"] = list(val_loss)
    scores = {PROBE: {"accuracy": 0.5, "loss": 1.0}, FINETUNED: {"accuracy": 0.6, "loss": 0.9}}
    provenance = {
        "seconds": {SCRATCH: 9},
        "interpolation": {"alpha": alpha},
        "dataset": {"images": {"train": 7}},
    }
    return SimpleNamespace(
        history=pd.DataFrame(history),
        scores=scores,
        provenance=provenance,
        backbone_name="VGG16",
        **others,
    )


@pytest.mark.parametrize(
    ("transfer", "verdict"),
    [((0.1, 0.6, 0.6, 0.6), CONFIRMED), ((0.1, 0.2, 0.6, 0.6), REFUTED), ((0.1, 0.2), REFUTED)],
)
def test_training_is_shorter_if_transfer_is_ahead_in_the_first_half(transfer, verdict):
    scratch = run((0.2, 0.3, 0.4, 0.5))
    assert findings.training_is_shorter(run(transfer), scratch).verdict == verdict


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [((0.3, 0.2), CONFIRMED), ((0.3, 0.01), QUALIFIED), ((0.3, -0.1), REFUTED)],
)
def test_few_labels_are_judged_at_every_number_of_them(ahead, verdict):
    scratch = pd.DataFrame({"mean": [0.1, 0.5]}, index=[1, 10])
    transfer = scratch + np.array(ahead)[:, None]
    curves = {FINETUNED: transfer, SCRATCH: scratch}
    assert findings.few_labels_suffice(curves).verdict == verdict


@pytest.mark.parametrize(
    ("known", "verdict"), [((0.5, 0.4), CONFIRMED), ((0.5, 0.7), QUALIFIED), ((0.8, 0.7), REFUTED)]
)
def test_published_figures_are_beaten_all_some_or_none(known, verdict):
    published = pd.DataFrame({"fine": known, "network": ["A", "B"]})
    assert findings.state_of_the_art(run(), published).verdict == verdict


def test_classes_of_the_source_are_compared_with_the_others():
    classes = [f"class {i}" for i in range(12)]
    targets = np.repeat(np.arange(12), 5)
    probabilities = np.eye(12)[np.where(targets < 6, targets, 11)]
    found = run(targets=targets, probabilities={PROBE: probabilities}, classes=classes)
    judge = findings.source_and_target_must_be_alike
    assert judge(found, tuple(classes[:6])).verdict == CONFIRMED
    assert judge(found, tuple(classes[6:])).verdict == REFUTED
    assert judge(found, tuple(classes[:1])).verdict == QUALIFIED  # one class says little
    assert judge(found, ("Kiwi",)).verdict == NOT_MEASURED


@pytest.mark.parametrize(
    ("losses", "alpha", "verdict"),
    [((1, 0.5, 0.8), 1, CONFIRMED), ((1, 0.5), 0.9, CONFIRMED), ((1, 0.5), 1, REFUTED)],
)
def test_care_is_needed_where_loss_climbs_or_fine_tuning_is_undone(losses, alpha, verdict):
    assert findings.settings_need_care(run((), losses, alpha)).verdict == verdict


def test_the_backbone_matters_above_two_points():
    assert findings.backbone_matters({"A": 0.5, "B": 0.53}, "w").verdict == CONFIRMED
    assert findings.backbone_matters({"A": 0.5, "B": 0.51}, "w").verdict == REFUTED


def test_the_amount_of_data_is_judged_over_the_classes():
    f1 = pd.Series(np.linspace(0.1, 0.9, 20))
    judge = findings.amount_of_data_matters
    assert judge(f1, pd.Series(range(20)), "A").verdict == CONFIRMED
    assert judge(f1, pd.Series(range(20))[::-1].reset_index(drop=True), "A").verdict == REFUTED
    assert judge(f1, pd.Series([5] * 20), "A").verdict == NOT_MEASURED


def test_what_is_not_measured_says_its_rule_and_no_value():
    finding = findings.few_labels_suffice({})
    assert finding.verdict == NOT_MEASURED and not finding.value
    assert str(finding).startswith("**Not measured here** (ahead of scratch")
    measured = findings.backbone_matters({"A": 0.5, "B": 0.53}, "w")
    assert "between 0.500 and 0.530. **Confirmed here** (accuracies differ by" in str(measured)
    assert measured.not_measured().verdict == NOT_MEASURED
