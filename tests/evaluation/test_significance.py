import numpy as np
import pytest

from fruitveg_tl.evaluation import metrics, significance

N = 400


def right(fraction: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(N) < fraction


def test_a_large_gap_is_significant_and_its_direction_known():
    pairs = significance.compare({"weak": right(0.5, 0), "strong": right(0.9, 1)})
    (pair,) = pairs.itertuples()
    assert (pair.better, pair.worse) == ("strong", "weak")
    assert 0.3 < pair.low < pair.difference < pair.high < 0.6
    assert pair.significant and pair.p_holm <= 0.001
    assert significance.verdict(pairs) == "All 1 differences are significant."


def test_equal_networks_are_not_told_apart():
    same = right(0.7, 0)
    pairs = significance.compare({"a": same, "b": same.copy()})
    assert pairs["difference"].item() == 0 and pairs["p"].item() == 1
    assert "**not significant**: a over b" in significance.verdict(pairs)


def test_holm_makes_a_doubtful_gap_harder_to_resolve_among_many():
    base = right(0.7, 0)
    doubtful = base.copy()
    doubtful[np.flatnonzero(~base)[:5]] = True  # five more correct, none lost
    alone = significance.compare({"a": base, "b": doubtful})
    crowd = {f"c{i}": right(0.7, 10 + i) for i in range(4)}
    many = significance.compare({"a": base, "b": doubtful} | crowd)
    row = many[(many["better"] == "b") & (many["worse"] == "a")]
    assert alone["p"].item() == row["p"].item()
    assert alone["p_holm"].item() < row["p_holm"].item()


def test_seeds_enter_as_shares_and_order_does_not_matter():
    fractions = np.mean([right(0.6, seed) for seed in range(3)], axis=0)
    other = np.mean([right(0.65, seed) for seed in range(5, 8)], axis=0)
    one = significance.compare({"a": fractions, "b": other})
    two = significance.compare({"b": other, "a": fractions})
    assert one.equals(two)
    assert one["difference"].item() == pytest.approx(abs(fractions.mean() - other.mean()))


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        significance.compare({"a": right(0.5, 0), "b": right(0.5, 0)[:-1]})


def test_changes_are_told_in_points_from_one_of_them():
    base = right(0.7, 0)
    correct = {"worse": base & right(0.5, 1), "recipe": base, "same": base.copy()}
    changes = significance.against(correct, "recipe")
    points = 100 * (correct["worse"].mean() - base.mean())
    assert changes["worse"] == (pytest.approx(points), True) and changes["same"] == (0, False)
    told = significance.in_points({name: changes[name] for name in ("worse", "same")})
    assert told == f"worse {points:+.1f}, same +0.0 (not significant)"


def test_macro_f1_is_compared_on_the_same_images():
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=300)
    good = np.where(rng.random((2, 300)) < 0.9, targets, (targets + 1) % 3)
    poor = np.where(rng.random((2, 300)) < 0.6, targets, (targets + 1) % 3)
    pairs = significance.compare_macro_f1(targets, {"poor": poor, "good": good, "again": good})
    first = pairs.set_index(["better", "worse"]).loc[("good", "poor")]
    assert first["significant"] and first["low"] < first["difference"] < first["high"]
    expected = np.mean([metrics.macro_f1(targets, p) for p in good])
    expected -= np.mean([metrics.macro_f1(targets, p) for p in poor])
    assert first["difference"] == pytest.approx(expected)
    twins = pairs[pairs["better"].isin(["good", "again"]) & (pairs["worse"] != "poor")]
    assert not twins["significant"].any() and (twins["difference"] == 0).all()
