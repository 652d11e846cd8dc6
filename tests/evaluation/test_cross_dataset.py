import json

import numpy as np
import pytest
from conftest import COUNTS, PROJECT, save_image

from fruitveg_tl.config import FINETUNED, PROBE
from fruitveg_tl.data.registry import load
from fruitveg_tl.evaluation import cross_dataset
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


def trained(name, quick, dataset):
    """Train on a set; what a probe sees are the colours of its images."""
    run = quick.train(images=dataset)
    images = load(dataset)
    features = np.tile(images.pixels(32).mean((1, 2)), 300)  # as many as a network has
    return cross_dataset.Trained(name, run, images, features)


def test_a_network_chooses_among_the_classes_that_two_sets_share():
    assert cross_dataset.shared_classes(["apple", "bell pepper", "capsicum", "corn"],
                                        ["Apple", "Leek", "Pepper"], NAMES) == SHARED  # fmt: skip
    # apple, bell pepper, capsicum, corn
    probabilities = np.array([[0.2, 0.1, 0.3, 0.4], [0.1, 0.0, 0.0, 0.9], [0.0, 0.0, 0.0, 1.0]])
    known = ("apple", "bell pepper", "capsicum", "corn")
    found = cross_dataset.on_shared_classes(probabilities, known, SHARED, NAMES)
    np.testing.assert_allclose(found, [[1 / 3, 2 / 3], [1, 0], [0.5, 0.5]], atol=1e-6)


def test_networks_are_tested_on_both_sets_frozen_and_fine_tuned(home, quick, kaggle, shop):
    one, other = trained("kaggle", quick, kaggle), trained("shop", quick, shop)
    crossings = list(cross_dataset.both_ways(one, other, NAMES))
    test = COUNTS["test"]
    sizes = {"kaggle": [test, 2 * test], "shop": [test, test]}  # of the two shared classes
    names = ("kaggle", "shop")
    assert [(c.trained_on, c.tested_on, c.stage) for c in crossings] == [
        (a, b, stage) for a in names for b in names for stage in (PROBE, FINETUNED)
    ]
    for crossing in crossings:
        assert np.bincount(crossing.targets).tolist() == sizes[crossing.tested_on]
        np.testing.assert_allclose(crossing.probabilities.sum(1), 1, rtol=1e-5)
        if crossing.stage == PROBE:  # red apples and green peppers are alike in both sets
            assert (crossing.probabilities.argmax(1) == crossing.targets).all()

    # A network that is read back, in the other set's order of classes.
    away = next(c for c in crossings if (c.trained_on, c.stage) == ("shop", FINETUNED))
    rows = one.dataset.rows("test")[: 3 * test]  # apples, bell peppers, capsicums
    pixels = one.dataset.pixels(32)[rows].astype(np.float32)
    apple, _, pepper = other.run.load_model().predict(pixels, verbose=0).T  # Apple, Leek, Pepper
    np.testing.assert_allclose(away.probabilities[:, 0], apple / (apple + pepper), atol=1e-5)

    table = cross_dataset.scores(crossings * 2)  # as if two seeds were equal
    assert table["images"].tolist() == [6 * test, 4 * test] * 2
    assert (table[f"accuracy, {PROBE}"] == 1).all()
    own = (crossings[1].probabilities.argmax(1) == crossings[1].targets).mean()
    assert table[f"accuracy, {FINETUNED}"][0] == pytest.approx(own)
    assert table[f"ECE, {FINETUNED}"].between(0, 1).all()


def test_sets_with_one_shared_class_are_refused(home, quick, kaggle, shop):
    one, other = trained("kaggle", quick, kaggle), trained("shop", quick, shop)
    with pytest.raises(InputError, match="kaggle and shop share 1 classes"):
        next(cross_dataset.both_ways(one, other, {"apple": "Apple"}))


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
