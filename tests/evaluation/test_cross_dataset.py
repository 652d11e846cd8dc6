import json

import numpy as np
import pytest
from conftest import PROJECT

from fruitveg_tl.evaluation import cross_dataset

NAMES = {"apple": "Apple", "bell pepper": "Pepper", "capsicum": "Pepper"}


SHARED = ["Apple", "Pepper"]


def test_a_network_chooses_among_the_classes_that_two_sets_share():
    assert cross_dataset.shared_classes(["apple", "bell pepper", "capsicum", "corn"],
                                        ["Apple", "Leek", "Pepper"], NAMES) == SHARED  # fmt: skip
    # apple, bell pepper, capsicum, corn
    probabilities = np.array([[0.2, 0.1, 0.3, 0.4], [0.1, 0.0, 0.0, 0.9], [0.0, 0.0, 0.0, 1.0]])
    known = ("apple", "bell pepper", "capsicum", "corn")
    found = cross_dataset.on_shared_classes(probabilities, known, SHARED, NAMES)
    np.testing.assert_allclose(found, [[1 / 3, 2 / 3], [1, 0], [0.5, 0.5]], atol=1e-6)


def test_classes_of_one_name_are_shared_whether_or_not_the_map_knows_them():
    assert cross_dataset.shared_classes(("cat", "apple"), ("Apple", "cat", "dog")) == [
        "Apple",
        "cat",
    ]
    assert cross_dataset.shared_classes(("cat",), ("dog",)) == []


def test_the_label_map_names_classes_that_exist():
    assert len(set(cross_dataset.FRUITS_VEGES_TO_GROCERY.values())) == 20
    assert all(name == name.lower() for name in cross_dataset.FRUITS_VEGES_TO_GROCERY)


MAP = PROJECT.parent / "shared" / "grocery_to_fruits_veges.json"


@pytest.mark.skipif(not MAP.is_file(), reason="the map to compare with is not on this machine")
def test_the_label_map_agrees_with_one_made_by_hand():
    by_hand = {name: folder.split("/")[1:] for folder, name in json.loads(MAP.read_text()).items()}
    ours = cross_dataset.FRUITS_VEGES_TO_GROCERY
    # Watermelons and sweet potatoes are kinds of a coarse class; a capsicum is a bell pepper.
    assert by_hand.keys() - ours.keys() == {"watermelon", "sweetpotato"}
    assert ours.keys() - by_hand.keys() == {"capsicum"}
    assert all(by_hand[name][0] == ours[name] for name in by_hand.keys() & ours.keys())
