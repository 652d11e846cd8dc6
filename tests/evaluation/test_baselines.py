from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fruitveg_tl.data.registry import load
from fruitveg_tl.evaluation import baselines, metrics


def accuracy(dataset, probabilities):
    return metrics.evaluate(dataset.targets[dataset.rows("test")], probabilities)["accuracy"]


def test_colour_tells_coloured_classes_apart_and_the_majority_does_not(images, home):
    dataset = load(str(images))
    assert accuracy(dataset, baselines.colour_histogram(dataset)) == 1.0
    guess = baselines.majority(dataset)
    assert accuracy(dataset, guess) == pytest.approx(1 / 3)
    np.testing.assert_allclose(guess, 1 / 3)


def test_the_majority_follows_training_alone(images, home):
    dataset = load(str(images))
    index = dataset.index.copy()
    dropped = index.index[(index["split"] == "train") & (index["label"] != "cherry")][::2]
    fewer = replace(dataset, index=index.drop(dropped).reset_index(drop=True))
    assert (baselines.majority(fewer).argmax(1) == 2).all()


def test_a_study_keeps_the_accuracy_of_both(images, home, tmp_path):
    found = baselines.accuracies(load(str(images)))
    assert found.to_dict() == pytest.approx({"majority class": 1 / 3, "colour histogram": 1.0})
    found.rename("accuracy").rename_axis("baseline").to_csv(tmp_path / "baselines.csv")
    assert baselines.of_study(SimpleNamespace(folder=tmp_path)).to_dict() == found.to_dict()
