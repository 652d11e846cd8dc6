from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from fruitveg_tl.evaluation.metrics import (
    accuracy,
    classification_report,
    confused_pairs,
    confusion,
    evaluate,
    macro_f1,
    mean_probabilities,
    sure_from,
    wilson_interval,
)


@st.composite
def probabilities(draw):
    classes = draw(st.integers(2, 8))
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probabilities = rng.dirichlet(np.full(classes, draw(st.sampled_from([0.05, 1.0, 20.0]))), n)
    return rng.integers(0, classes, n), probabilities.astype(np.float32)


@given(probabilities())
def test_scores_agree_with_their_definitions(case):
    targets, probabilities = case
    scores, matrix = (
        evaluate(targets, probabilities),
        confusion(targets, probabilities.argmax(1), probabilities.shape[1]),
    )
    assert matrix.sum() == len(targets)
    assert scores["accuracy"] == pytest.approx(np.trace(matrix) / len(targets))
    # Weighted recall is accuracy; macro recall is the mean of the row-wise fractions.
    assert scores["recall_weighted"] == pytest.approx(scores["accuracy"])
    hits = np.diag(matrix)
    recall = hits / np.maximum(matrix.sum(1), 1)
    precision = hits / np.maximum(matrix.sum(0), 1)
    f1 = 2 * hits / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    assert scores["recall_macro"] == pytest.approx(recall.mean())
    assert scores["precision_macro"] == pytest.approx(precision.mean())
    assert scores["f1_macro"] == pytest.approx(f1.mean())
    assert scores["top5_accuracy"] >= scores["accuracy"]
    rows = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
    picked = rows[np.arange(len(targets)), targets]
    if picked.min() > 1e-12:
        assert scores["loss"] == pytest.approx(-np.log(picked).mean(), rel=1e-4)


@given(probabilities(), st.randoms())
def test_order_of_images_does_not_matter(case, random):
    targets, probabilities = case
    order = list(range(len(targets)))
    random.shuffle(order)
    assert evaluate(targets[order], probabilities[order]) == pytest.approx(
        evaluate(targets, probabilities)
    )


def test_zero_division_cases_are_zero():
    # Class 1 is never predicted, class 2 has no images and is never predicted.
    targets = np.array([0, 0, 1])
    probabilities = np.array([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.5, 0.4, 0.1]])
    scores = classification_report(targets, probabilities.argmax(1), ["a", "b", "c"])
    assert scores.loc["b", ["precision", "recall", "f1"]].tolist() == [0, 0, 0]
    assert scores.loc["c", ["precision", "recall", "f1", "support"]].tolist() == [0, 0, 0, 0]
    assert evaluate(targets, probabilities)["precision_macro"] == pytest.approx(2 / 9)


def test_a_certain_wrong_prediction_has_finite_loss():
    assert np.isfinite(evaluate(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))["loss"])


@pytest.mark.parametrize(
    ("targets", "probabilities"),
    [
        ([0, 1], [[1.0, 0.0]]),
        ([2], [[1.0, 0.0]]),
        ([0], [[np.nan, 1.0]]),
        ([], np.empty((0, 3))),
    ],
)
def test_what_does_not_match_is_refused(targets, probabilities):
    with pytest.raises(ValueError):
        evaluate(np.array(targets, int), np.array(probabilities))


def test_confused_pairs_come_most_frequent_first():
    counts = np.array([[5, 0, 1], [3, 1, 0], [0, 0, 4]])
    pairs = confused_pairs(counts, ["a", "b", "c"])
    assert pairs[["true", "predicted", "images"]].to_numpy().tolist() == [
        ["b", "a", 3],
        ["a", "c", 1],
    ]
    assert pairs["fraction"].tolist() == [3 / 4, 1 / 6]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9))
def test_fast_scores_are_those_of_scikit_learn(seed, n, classes):
    targets, predicted = np.random.default_rng(seed).integers(0, classes, (2, n))
    expected = f1_score(targets, predicted, average="macro", zero_division=0)
    assert macro_f1(targets, predicted) == pytest.approx(expected)
    assert accuracy(targets, predicted) == accuracy_score(targets, predicted)


def test_an_accuracy_of_one_has_an_interval_too():
    low, high = wilson_interval(1.0, 10)
    assert low == pytest.approx(0.7225, abs=1e-4) and high == pytest.approx(1)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0)
    low, high = wilson_interval(0.5, 1000)
    assert low == pytest.approx(0.469, abs=1e-3) and high == pytest.approx(0.531, abs=1e-3)


def test_the_mean_of_the_networks_is_taken_seed_by_seed():
    def run(*predicted):
        probabilities = np.full((3, 3), 0.2) + 0.4 * np.eye(3)[list(predicted)]
        return SimpleNamespace(probabilities={"fine-tuned": probabilities})

    every = {"A": [run(0, 0, 2), run(0, 1, 2)], "B": [run(0, 1, 1), run(1, 1, 1)]}
    first, second = mean_probabilities(every)
    np.testing.assert_allclose(first[1], [0.4, 0.4, 0.2])
    np.testing.assert_allclose(second[0], [0.4, 0.4, 0.2])


def test_the_confidence_from_which_answers_are_sure():
    confidence = np.array([0.9] * 30 + [0.8] * 10 + [0.7] * 10)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    targets = np.zeros(50, int)
    targets[30:32] = 1  # 2 of 40 are wrong from 0.8: exactly 95 % are right
    found = sure_from(targets, probabilities)
    assert (found["min_confidence"], found["coverage"], found["images"]) == (0.7, 1.0, 50)
    targets[45] = 1  # 3 of 50 from 0.7
    assert sure_from(targets, probabilities)["min_confidence"] == 0.8
    assert sure_from(targets, probabilities)["coverage"] == 0.8
    never = sure_from(np.ones(50, int), probabilities)
    assert (never["min_confidence"], never["coverage"]) == (1.01, 0.0)
