from types import SimpleNamespace

import numpy as np
import pytest

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.evaluation.leak_effect import ALL, CLEAN, LEAKED, leak_effect


def run(correct):
    """Return a run on images of class 0, of which it takes some for class 1."""
    wrong = 1 - np.array(correct, int)
    return SimpleNamespace(predicted={FINETUNED: wrong}, targets=np.zeros(len(wrong), int))


def test_leaks_are_worth_what_the_leaked_images_gain():
    leaked = np.arange(40) < 10
    half = np.arange(40) % 2 == 0
    effect = leak_effect([run(half | leaked)], [run(half), run(half)], leaked)
    assert effect["images"].to_dict() == {ALL: 40, LEAKED: 10, CLEAN: 30}
    assert effect.loc[LEAKED, ["with leaks", "without", "difference"]].tolist() == [1, 0.5, 0.5]
    assert effect.loc[CLEAN, ["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert effect.loc[ALL, "difference"] == pytest.approx(5 / 40)
    assert 0 < effect.loc[ALL, "low"] < 5 / 40 < effect.loc[ALL, "high"]


def test_a_split_that_leaks_wholly_has_no_clean_part():
    effect = leak_effect([run([1, 1])], [run([1, 0])], np.array([True, True]))
    assert list(effect.index) == [ALL, LEAKED]
