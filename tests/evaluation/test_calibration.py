import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from fruitveg_tl.evaluation import metrics


def draw(temperature: float, n: int = 4000, classes: int = 5, seed: int = 0):
    """Labels drawn from known probabilities, and those probabilities at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    true = special.softmax(logits, axis=1)
    targets = (true.cumsum(1) > rng.random((n, 1))).argmax(1)
    return targets, special.softmax(logits / temperature, axis=1)


def test_a_network_that_knows_its_chances_is_calibrated():
    targets, honest = draw(1.0)
    _, boastful = draw(0.4)
    assert metrics.expected_calibration_error(targets, honest) < 0.03
    assert metrics.expected_calibration_error(targets, boastful) > 0.1


def test_the_error_is_the_known_one_in_a_case_done_by_hand():
    targets = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    found = metrics.reliability(targets, probabilities, bins=10)
    assert found["images"].tolist() == [1, 3]
    assert found["accuracy"].tolist() == [1.0, pytest.approx(2 / 3)]
    expected = 0.25 * 0.2 + 0.75 * (0.9 - 2 / 3)
    assert metrics.expected_calibration_error(targets, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_temperature_scaling_finds_what_was_done_to_the_probabilities(true):
    targets, found = draw(true)
    fitted = metrics.temperature(targets, found)
    assert fitted == pytest.approx(1 / true, rel=0.08)
    scaled = metrics.scale(found, fitted)
    assert (scaled.argmax(1) == found.argmax(1)).all()
    before, after = (metrics.evaluate(targets, p)["loss"] for p in (found, scaled))
    assert after <= before + 1e-9


def test_certain_and_wrong_is_survived():
    targets, probabilities = np.array([0, 1, 1]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(metrics.temperature(targets, probabilities))
    assert metrics.reliability(targets, probabilities)["images"].tolist() == [3]


@given(st.integers(0, 1000), st.integers(2, 40))
def test_risk_at_full_coverage_is_the_error_rate(seed, n):
    targets, probabilities = draw(1.0, n=n, seed=seed)
    curve = metrics.risk_coverage(targets, probabilities)
    assert curve["coverage"].iloc[-1] == 1
    assert curve["risk"].iloc[-1] == pytest.approx((probabilities.argmax(1) != targets).mean())
    assert curve["confidence"].is_monotonic_decreasing
