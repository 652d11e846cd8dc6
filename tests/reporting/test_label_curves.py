from types import SimpleNamespace

import pytest

from fruitveg_tl.config import FINETUNED, PROBE, SCRATCH
from fruitveg_tl.reporting.tables import images_per_class, label_curves


def run(count=None, **accuracies):
    return SimpleNamespace(
        row={"images per class": count},
        scores={stage: {"accuracy": value} for stage, value in accuracies.items()},
        counts={"train": 21},
        classes=["fig", "kiwi"],
    )


def test_a_curve_has_mean_lowest_and_highest_seed():
    whole = run(**{PROBE: 0.8, FINETUNED: 0.9})
    one, other = (run(1, **{PROBE: p, FINETUNED: f}) for p, f in ((0.3, 0.2), (0.5, 0.6)))
    curves = label_curves([whole, one, other, run(**{SCRATCH: 0.1})])
    assert list(curves) == [PROBE, FINETUNED, SCRATCH]
    curve = curves[FINETUNED]
    assert curve.index.tolist() == [1, 10.5]
    assert curve.loc[1].to_dict() == pytest.approx({"mean": 0.4, "low": 0.2, "high": 0.6})
    assert curve.loc[10.5].tolist() == pytest.approx([0.9] * 3)
    assert curves[PROBE].loc[1, "mean"] == pytest.approx(0.4)
    assert curves[SCRATCH]["mean"].to_dict() == {10.5: pytest.approx(0.1)}


def test_a_class_has_so_many_images_on_average():
    assert images_per_class(run()) == 10.5
