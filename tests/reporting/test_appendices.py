"""What only one notebook uses lives in its cells: the functions among them."""

from types import SimpleNamespace

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT

from fruitveg_tl.config import FINETUNED


def function(notebook: str, name: str):
    """Run the imports of a notebook and the cell that defines a function."""
    cells = nbformat.read(PROJECT / "notebooks" / f"{notebook}.ipynb", 4).cells
    names = {}
    for cell in cells:
        if cell.cell_type == "code" and (f"def {name}(" in cell.source or not names):
            exec(cell.source.split("\nlines = []")[0], names)
    return names[name]


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
