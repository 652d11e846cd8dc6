from types import SimpleNamespace

import pytest

from fruitveg_tl.config import FINETUNED, PROBE
from fruitveg_tl.evaluation.label_curve import images_per_class, label_curve


def run(probe, fine_tuned):
    scores = {PROBE: {"accuracy": probe}, FINETUNED: {"accuracy": fine_tuned}}
    provenance = {"dataset": {"images": {"train": 21}}}
    return SimpleNamespace(scores=scores, provenance=provenance, classes=["fig", "kiwi"])


def test_a_curve_has_mean_lowest_and_highest_seed():
    taught = {10.5: [run(0.8, 0.9)], 1: [run(0.3, 0.2), run(0.5, 0.6)]}
    curve = label_curve(taught, FINETUNED)
    assert curve.index.tolist() == [1, 10.5]
    assert curve.loc[1].to_dict() == pytest.approx({"mean": 0.4, "low": 0.2, "high": 0.6})
    assert curve.loc[10.5].tolist() == pytest.approx([0.9] * 3)
    assert label_curve(taught, PROBE).loc[1, "mean"] == pytest.approx(0.4)


def test_a_class_has_so_many_images_on_average():
    assert images_per_class(run(0, 0)) == 10.5
