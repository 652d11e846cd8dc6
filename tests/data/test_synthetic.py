import numpy as np
from PIL import Image

from fruitveg_tl.data import synthetic
from fruitveg_tl.data.registry import load


def test_same_seed_same_pixels_other_seed_others():
    first = synthetic.render("apple", (1, 2))
    assert first.shape == (synthetic.SIZE, synthetic.SIZE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, synthetic.render("apple", (1, 2)))
    assert (first != synthetic.render("apple", (1, 3))).mean() > 0.5


def test_every_class_draws_without_a_hole():
    for name in synthetic.DRAWINGS:
        for seed in range(3):
            assert synthetic.render(name, seed).std() > 5, name


def test_generated_set_is_a_dataset_with_fixed_disjoint_splits(home, monkeypatch):
    monkeypatch.setattr(synthetic, "COUNTS", {"train": 3, "val": 1, "test": 2})
    dataset = load("synthetic")
    assert len(dataset.classes) == len(synthetic.DRAWINGS) == 8
    assert dataset.split_sizes() == {"train": 24, "val": 8, "test": 16}
    assert dataset.index["sha256"].is_unique
    assert load("synthetic").digest == dataset.digest


def test_generated_files_hold_the_rendered_pixels(home, monkeypatch):
    monkeypatch.setattr(synthetic, "COUNTS", {"train": 1})
    folder = synthetic.generate(home / "drawn")
    names = sorted(synthetic.DRAWINGS)
    with Image.open(folder / "train" / names[3] / "000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), synthetic.render(names[3], (0, 3, 0, 0)))
