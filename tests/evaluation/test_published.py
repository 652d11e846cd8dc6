from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.data import grocery
from fruitveg_tl.evaluation import ensemble, published

PATHS = ("test/Fruit/Apple/Fuji/1.jpg", "test/Fruit/Apple/Gala/1.jpg", "test/Packages/Milk/M/1.jpg")
TEST = pd.DataFrame({"path": PATHS, "label": ["Fuji", "Gala", "Milk"]})


def a_run(*predicted):
    """Return a run of three images, one of each fine class, with these predictions."""
    probabilities = np.full((3, 3), 0.2) + 0.4 * np.eye(3)[list(predicted)]
    return SimpleNamespace(
        targets=np.arange(3), probabilities={FINETUNED: probabilities}, test=TEST
    )


def test_networks_stand_beside_published_figures_at_both_levels():
    # One network takes one apple for the other; the other takes the milk for an apple.
    every = {"A": [a_run(0, 0, 2), a_run(0, 1, 2)], "B": [a_run(0, 1, 1), a_run(0, 1, 1)]}
    table = published.beside_published(every)
    assert list(table.columns) == list(grocery.published().columns)
    assert table["fine"].is_monotonic_increasing
    ours = table[table["source"] == published.HERE].set_index("network")
    assert len(ours) == 3 and len(table) == 3 + len(grocery.published())
    assert ours.loc["A", "fine"] == pytest.approx(5 / 6) and ours.loc["A", "coarse"] == 1
    assert ours.loc["B", "fine"] == ours.loc["B", "coarse"] == pytest.approx(2 / 3)
    assert ours.loc["A", "protocol"].endswith("2 seeds")


def test_the_mean_of_the_networks_is_taken_seed_by_seed():
    every = {"A": [a_run(0, 0, 2), a_run(0, 1, 2)], "B": [a_run(0, 1, 1), a_run(1, 1, 1)]}
    first, second = ensemble.mean_probabilities(every)
    np.testing.assert_allclose(first[1], [0.4, 0.4, 0.2])
    np.testing.assert_allclose(second[0], [0.4, 0.4, 0.2])
