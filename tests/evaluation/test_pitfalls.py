import numpy as np
import pytest
from conftest import write_images

from fruitveg_tl.data.registry import load
from fruitveg_tl.evaluation import metrics, pitfalls


@pytest.mark.parametrize("ending", [".jpg", ".tif"])  # Keras refuses a set of TIFF alone
def test_a_loader_at_the_root_takes_the_splits_for_classes(tmp_path, home, ending):
    dataset = load(str(write_images(tmp_path / "images", ending=ending)))
    assert pitfalls.classes_at_the_root(dataset) == ["test", "train", "validation"]
    found = pitfalls.splits_as_classes(dataset)
    assert 0 <= found.shown <= 1 and found.true == 0


def test_dividing_again_changes_what_the_network_sees():
    class Network:
        def predict(self, pixels, verbose):
            return np.stack([pixels > 1, pixels <= 1], 1).astype(float)

    pixels, targets = np.array([200.0, 100.0, 0.5]), np.array([0, 0, 1])
    found = pitfalls.divided_by_255(Network(), pixels, targets, 1.0)
    assert found.shown == 1 and found.true == pytest.approx(1 / 3)


def test_shuffled_predictions_look_like_guessing():
    targets = np.arange(1000) % 10
    found = pitfalls.shuffled_predictions(targets, targets)
    assert found.true == 1 and 0.05 < found.shown < 0.15


def test_a_test_split_that_chooses_flatters_what_it_chose():
    correct = np.random.default_rng(1).random((20, 100)) < 0.5
    found = pitfalls.chosen_by_the_test_split(correct)
    assert found.shown > found.true + 0.05


def test_names_that_a_pattern_misses_are_not_tested():
    correct = np.array([1.0, 1.0, 0.0, 0.0])
    found = pitfalls.jpg_only(["a.jpg", "b.jpg", "c.png", "d.JPG"], correct)
    assert (found.shown, found.true) == (1.0, metrics.accuracy(correct, np.ones(4)))
    assert pitfalls.jpg_only(["c.png"], np.ones(1)) is None
