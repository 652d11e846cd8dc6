import numpy as np
from PIL import Image

from fruitveg_tl import sample
from fruitveg_tl.datasets import load


def test_same_seed_same_pixels_other_seed_others():
    first = sample.render("apple", (1, 2))
    assert first.shape == (sample.SIZE, sample.SIZE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, sample.render("apple", (1, 2)))
    assert (first != sample.render("apple", (1, 3))).mean() > 0.5


def test_every_class_draws_without_a_hole():
    for name in sample.DRAWINGS:
        for seed in range(3):
            assert sample.render(name, seed).std() > 5, name


def test_generated_set_is_a_dataset_with_fixed_disjoint_splits(home, monkeypatch):
    monkeypatch.setattr(sample, "COUNTS", {"train": 3, "val": 1, "test": 2})
    dataset = load("sample")
    assert len(dataset.classes) == len(sample.DRAWINGS) >= 12
    assert dataset.split_sizes() == {"train": 48, "val": 16, "test": 32}
    assert dataset.index["sha256"].is_unique
    assert load("sample").digest == dataset.digest


def test_generated_files_hold_the_rendered_pixels(home, monkeypatch):
    monkeypatch.setattr(sample, "COUNTS", {"train": 1})
    folder = sample.generate(home / "drawn")
    names = sorted(sample.DRAWINGS)
    with Image.open(folder / "train" / names[3] / "000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), sample.render(names[3], (0, 3, 0, 0)))
