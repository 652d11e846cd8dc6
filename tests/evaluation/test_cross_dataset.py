from dataclasses import replace

import numpy as np
import pytest
from conftest import COUNTS, save_image

from fruitveg_tl import results
from fruitveg_tl.data.registry import load
from fruitveg_tl.evaluation import cross_dataset
from fruitveg_tl.run import train_and_evaluate
from fruitveg_tl.utils.errors import InputError

NAMES = {"apple": "Apple", "bell pepper": "Pepper", "capsicum": "Pepper"}


def write(root, classes):
    for split, count in COUNTS.items():
        for name, colour in classes.items():
            for i in range(count):
                save_image(root / split / name / f"{i}.jpg", colour, i + 100 * len(split))
    return str(root)


@pytest.fixture
def kaggle(tmp_path):
    """In the style of fruits-veges, with two classes that are one elsewhere."""
    return write(tmp_path / "kaggle", {"apple": 0, "bell pepper": 1, "capsicum": 1, "corn": 2})


@pytest.fixture
def shop(tmp_path):
    """In the style of grocery, in another order and with classes of its own."""
    return write(tmp_path / "shop", {"Pepper": 1, "Apple": 0, "Leek": 2})


SHARED = ["Apple", "Pepper"]


def test_a_network_classifies_another_set_on_the_classes_they_share(home, quick, kaggle, shop):
    run, dataset = results.load(train_and_evaluate(replace(quick, dataset=kaggle))), load(shop)
    assert cross_dataset.shared_classes(run.classes, dataset.classes, NAMES) == SHARED
    targets, probabilities = cross_dataset.on_shared_classes(run, dataset, SHARED, NAMES)
    # In the order of the index: apples of the test split first, then peppers; no leeks.
    assert targets.tolist() == [0] * COUNTS["test"] + [1] * COUNTS["test"]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)

    rows = dataset.rows("test")[:4]
    pixels = dataset.pixels(quick.size)[rows].astype(np.float32)
    apple, bell, capsicum, _ = run.load_model().predict(pixels, verbose=0).T
    np.testing.assert_allclose(probabilities[:4, 0], apple / (apple + bell + capsicum), rtol=1e-4)


def test_read_the_other_way_round_and_on_its_own_set(home, quick, kaggle, shop):
    run = results.load(train_and_evaluate(replace(quick, dataset=shop)))
    targets, _ = cross_dataset.on_shared_classes(run, load(kaggle), SHARED, NAMES)
    assert np.bincount(targets).tolist() == [COUNTS["test"], 2 * COUNTS["test"]]
    own, probabilities = cross_dataset.on_shared_classes(run, load(shop), SHARED, NAMES)
    assert len(own) == 2 * COUNTS["test"] and probabilities.shape == (len(own), 2)


def test_sets_with_one_shared_class_are_refused(finished, shop):
    with pytest.raises(InputError, match="share 1 of the classes"):
        cross_dataset.on_shared_classes(results.load(finished), load(shop), ["Apple"])


def test_classes_of_one_name_are_shared_whether_or_not_the_map_knows_them():
    assert cross_dataset.shared_classes(("cat", "apple"), ("Apple", "cat", "dog")) == [
        "Apple",
        "cat",
    ]
    assert cross_dataset.shared_classes(("cat",), ("dog",)) == []


def test_two_networks_are_tested_on_both_sets(home, quick, kaggle, shop):
    runs = {str(train_and_evaluate(replace(quick, dataset=d))): load(d) for d in (kaggle, shop)}
    table = cross_dataset.both_ways(runs)
    # Of the study's own map; the corn and the leeks stand in one set alone.
    assert set(table["classes"]) == {2}
    assert list(zip(table["trained on"], table["tested on"], strict=True)) == [
        ("kaggle", "kaggle"), ("kaggle", "shop"), ("shop", "kaggle"), ("shop", "shop"),
    ]  # fmt: skip
    assert table["images"].tolist() == [3 * COUNTS["test"], 2 * COUNTS["test"]] * 2
    assert table["accuracy"].between(0, 1).all()


def test_the_label_map_names_classes_that_exist():
    assert len(set(cross_dataset.FRUITS_VEGES_TO_GROCERY.values())) == 20
    assert all(name == name.lower() for name in cross_dataset.FRUITS_VEGES_TO_GROCERY)
