import numpy as np
import pandas as pd
from conftest import scene, write_scenes
from PIL import Image

from fruitveg_tl.data import audit
from fruitveg_tl.data.registry import load


def write(root, images):
    return load(write_scenes(root, images))


def distinct(classes, count):
    """So many images of each class and split, no two alike."""
    return {
        f"{split}/{name}/{i}.png": scene(1000 * s + 100 * n + i)
        for s, split in enumerate(("train", "val", "test"))
        for n, name in enumerate(classes)
        for i in range(count)
    }


def test_exact_and_near_duplicates_are_found_and_nothing_else(tmp_path, home):
    plain = distinct(("kiwi", "pear"), 4)
    again = plain["train/kiwi/0.png"]
    brighter = plain["train/pear/1.png"].resize((80, 80)).point(lambda v: min(255, v + 12))
    extra = {"test/kiwi/copy.png": again, "test/pear/near.png": brighter}
    dataset = write(tmp_path / "set", plain | extra)
    pairs = audit.duplicates(dataset, dataset.pixels(64))
    paths = dataset.index["path"]
    found = [({paths[pair.first], paths[pair.second]}, pair.exact) for pair in pairs.itertuples()]
    assert found == [
        ({"train/kiwi/0.png", "test/kiwi/copy.png"}, True),
        ({"train/pear/1.png", "test/pear/near.png"}, False),
    ]
    assert pairs["same_label"].all()
    leaked = paths[audit.leaked_test_rows(pairs)]
    assert set(leaked) == {"test/kiwi/copy.png", "test/pear/near.png"}


def test_pairs_within_a_split_are_no_leak():
    pairs = pd.DataFrame(
        {
            "first": [0, 5, 2],
            "second": [1, 6, 7],
            "first_split": ["train", "test", "test"],
            "second_split": ["train", "test", "val"],
        }
    )
    assert audit.leaked_test_rows(pairs).tolist() == [2]


def test_a_chain_of_pairs_is_one_group():
    pairs = pd.DataFrame({"first": [0, 1, 4], "second": [1, 3, 5]})
    groups = audit.duplicate_groups(pairs, 7)
    assert groups[0] == groups[1] == groups[3] and groups[4] == groups[5]
    assert len(set(groups)) == 4
    assert len(set(audit.duplicate_groups(pairs[:0], 3))) == 3


def test_exact_leaks_are_counted_in_one_line(tmp_path, home):
    images = distinct(("corn", "sweetcorn"), 3)
    assert audit.exact_leaks(write(tmp_path / "clean", images)) is None
    images["test/corn/again.png"] = images["train/corn/0.png"]
    images["test/corn/both.png"] = images["val/sweetcorn/1.png"]
    line = audit.exact_leaks(write(tmp_path / "set", images))
    assert "set: 2 of 8 test images are also in train or val" in line
    assert "1 images have two labels (corn and sweetcorn)" in line
    assert "--resplit" in line and "\n" not in line


def test_what_stands_twice_is_counted(tmp_path, home):
    images = distinct(("corn", "sweetcorn"), 3)
    images["test/corn/trained.png"] = images["train/corn/0.png"]
    images["test/corn/again.png"] = images["test/corn/1.png"]
    images["val/corn/tested.png"] = images["test/corn/2.png"]
    images["train/sweetcorn/both.png"] = images["train/corn/0.png"]
    images["train/sweetcorn/near.png"] = images["train/corn/1.png"].point(lambda v: min(255, v + 9))
    dataset = write(tmp_path / "set", images)
    counted = audit.summary(dataset, audit.duplicates(dataset, dataset.pixels(64)))
    assert counted.to_dict() == {
        "classes": 2,
        "images": 23,
        "distinct contents": 19,
        "images in train": 8,
        "images in val": 7,
        "images in test": 8,
        "test images also in train": 1,
        "test images that repeat another one": 1,
        "validation images also in test": 1,
        "contents under two labels": 1,
        "near pairs": 1,
        "near pairs under two labels": 1,
    }


def test_quality_orders_images_as_the_eye_does():
    sharp = np.asarray(scene(3).resize((64, 64)))
    noise = np.random.default_rng(0).integers(-20, 20, sharp.shape)
    sharp = np.clip(sharp.astype(int) + noise, 0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(sharp).resize((8, 8)).resize((64, 64)))
    dark, grey = sharp // 4, np.full_like(sharp, 128)
    found = audit.quality(np.stack([sharp, blurred, dark, grey]))
    assert found["sharpness"][1] < found["sharpness"][0]
    assert found["brightness"][2] < found["brightness"][0]
    assert found.loc[3, ["contrast", "saturation", "sharpness"]].abs().max() < 1e-3
