"""What only one notebook uses lives in its cells: functions, and cells by themselves."""

from types import SimpleNamespace

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.evaluation import significance


def sources(notebook: str) -> list[str]:
    cells = nbformat.read(PROJECT / "notebooks" / f"{notebook}.ipynb", 4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def function(notebook: str, name: str):
    """Run the imports of a notebook and the cell that defines a function."""
    names = {}
    for source in sources(notebook):
        if f"def {name}(" in source or not names:
            exec(source.split("\nlines = []")[0], names)
    return names[name]


def run_cell(notebook: str, text: str, **given) -> dict:
    """Run the one cell that holds a text, with these names; return all names."""
    (source,) = (source for source in sources(notebook) if text in source)
    names = {"np": np, "pd": pd} | given
    exec(source, names)
    return names


def test_a_run_reaches_an_accuracy_after_the_frozen_part_and_whole_epochs():
    stages = ["linear probe", *["fine-tuned"] * 2]
    history = pd.DataFrame({"stage": stages, "val_accuracy": [0.1, 0.6, 0.5]})
    seconds = {"frozen": 5, "linear probe": 1, "fine-tuned": 8}
    seconds_until = function("05_comparison", "seconds_until")
    run = SimpleNamespace(history=history, seconds=seconds)
    assert seconds_until(run, 0.1) == 5 + 1
    assert seconds_until(run, 0.5) == 5 + 1 + 4  # its second epoch
    assert seconds_until(run, 0.7) == np.inf


def test_leaks_are_worth_what_the_leaked_images_gain():
    def run(correct):
        wrong = 1 - np.array(correct, int)
        return SimpleNamespace(predicted={FINETUNED: wrong}, targets=np.zeros(len(wrong), int))

    leaked = np.arange(40) < 10
    half = np.arange(40) % 2 == 0
    leak_effect = function("A5_second_set", "leak_effect")
    effect = leak_effect([run(half | leaked)], [run(half), run(half)], leaked)
    assert effect["images"].to_dict() == {"all": 40, "leaked": 10, "clean": 30}
    assert effect.loc["leaked", ["with leaks", "without", "difference"]].tolist() == [1, 0.5, 0.5]
    assert effect.loc["clean", ["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert effect.loc["all", "difference"] == pytest.approx(5 / 40)
    assert 0 < effect.loc["all", "low"] < 5 / 40 < effect.loc["all", "high"]
    everything = leak_effect([run([1, 1])], [run([1, 0])], np.array([True, True]))
    assert list(everything.index) == ["all", "leaked"]  # no clean part


def test_fine_predictions_are_read_at_both_levels():
    groups = pd.Series(["Apple", "Apple", "Milk"], index=["Fuji", "Gala", "M"])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.4, 0.2, 0.4]])
    both = function("A4_grocery", "at_both_levels")(np.arange(3), probabilities, groups)
    assert both == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_mistakes_are_sorted_by_how_far_off_they_are():
    fruit, category = ["Apple", "Apple", "Pear", "Leek"], ["Fruit"] * 3 + ["Vegetables"]
    levels = pd.DataFrame({"fruit": fruit, "category": category})
    targets, predicted = np.array([0, 0, 0, 0, 3]), np.array([0, 1, 2, 3, 3])
    found = function("A4_grocery", "severity")(targets, predicted, levels)
    expected = {"correct": 0.4, "same fruit": 0.2, "same category": 0.2, "other": 0.2}
    assert found.to_dict() == pytest.approx(expected)


def test_shuffled_kernels_keep_their_values_and_a_constant_map_agrees_with_none():
    layer = keras.layers.Dense(4)
    layer.build((None, 8))
    before = layer.get_weights()
    function("A2_explanations", "shuffle")([layer], np.random.default_rng(0))
    kernel, bias = layer.get_weights()
    assert (kernel != before[0]).any() and (bias == before[1]).all()
    np.testing.assert_array_equal(np.sort(kernel.ravel()), np.sort(before[0].ravel()))
    correlation = function("A2_explanations", "correlation")
    flat, slope = np.zeros((1, 4, 4)), np.arange(16.0).reshape(1, 4, 4)
    assert correlation(flat, slope) == 0
    assert correlation(slope, -slope) == pytest.approx(-1)


def answer(**accuracies: float) -> str:
    """Return what 05 answers for these networks."""
    said = []
    ranked = sorted(accuracies, key=lambda name: -accuracies[name])
    correct = {name: np.array([value]) for name, value in accuracies.items()}
    pairs = pd.DataFrame({"significant": [True]})
    given = {"ranked": ranked, "correct": correct, "pairs": pairs, "gains": {}, "together": [0.5]}
    every = {name: [None] for name in accuracies}
    run_cell(
        "05_comparison", "winners", **given, every=every, say=said.append, significance=significance
    )
    return said[0]


def test_ties_share_a_place():
    assert answer(A=0.5, B=0.9).startswith(
        "**B is the most accurate: 90.0% of the test images**, followed by A (50.0%). "
    )
    assert answer(A=0.9, B=0.9, C=0.8, D=0.8).startswith(
        "**A and B are the most accurate: 90.0% of the test images**, followed by C and D (80.0%). "
    )


def test_the_gap_is_what_images_seen_before_add():
    clean, shown = np.arange(300) >= 100, []
    # All that were seen, half of the others; then by chance.
    correct = {"A": np.where(clean, np.arange(300) % 2, 1.0), "B": np.arange(300) % 2.0}
    shows = {"say": shown.append, "table": shown.append}
    rows = run_cell("A1_evidence", "draws", clean=clean, correct=correct, **shows)["rows"]
    assert rows["A"]["gap"] == pytest.approx(correct["A"].mean() - 0.5)
    assert 0 < rows["A"]["low"] < rows["A"]["gap"] < rows["A"]["high"] < 0.3
    assert rows["B"]["low"] < 0 < rows["B"]["high"] and abs(rows["B"]["gap"]) < 0.01
    assert "100 of 300 test images" in shown[0]


def test_shuffled_predictions_look_like_guessing():
    served = SimpleNamespace(targets=np.arange(1000) % 10)
    given = {"served": served, "predicted": served.targets, "accuracy": 1.0, "mistakes": {}}
    ((shown, true),) = run_cell("A3_pitfalls", "shuffled =", **given)["mistakes"].values()
    assert true == 1 and 0.05 < shown < 0.15


def test_a_test_split_that_chooses_flatters_what_it_chose():
    correct = np.random.default_rng(1).random((20, 100)) < 0.5
    runs = [
        SimpleNamespace(predicted={"fine-tuned": row}, targets=np.ones(100), stages=["fine-tuned"])
        for row in correct
    ]
    found = run_cell("A3_pitfalls", "validation = test", every={"A": runs}, mistakes={})
    ((shown, true),) = found["mistakes"].values()
    assert shown > true + 0.05


def test_names_that_a_pattern_misses_are_not_tested():
    def found(*paths):
        test = pd.DataFrame({"path": paths})
        predicted, targets = np.array([1, 1, 0, 0])[: len(paths)], np.ones(len(paths))
        served = SimpleNamespace(test=test, targets=targets)
        given = {"served": served, "predicted": predicted, "accuracy": 0.5}
        return run_cell("A3_pitfalls", "*.jpg only", **given, mistakes={}, say=print)["mistakes"]

    assert list(found("a.jpg", "b.jpg", "c.png", "d.JPG").values()) == [(1.0, 0.5)]
    assert found("c.png") == {}
