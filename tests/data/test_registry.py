import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import CLASSES, COUNTS, PROJECT, save_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fruitveg_tl.data import folders, grocery
from fruitveg_tl.data.registry import load
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import MARK

SHARED = PROJECT.parent / "shared" / "data" / "GroceryStoreDataset"


@pytest.fixture
def groceries(tmp_path):
    """A miniature of the Grocery Store Dataset's own layout, cartons included."""
    root = tmp_path / "GroceryStoreDataset" / "dataset"
    products = {
        "Granny-Smith": ("Fruit/Apple/Granny-Smith", "Apple"),
        "Pink-Lady": ("Fruit/Apple/Pink-Lady", "Apple"),
        "Leek": ("Vegetables/Leek", "Leek"),
        "Oat-Milk": ("Packages/Milk/Oat-Milk", "Milk"),
    }
    rows = ["Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),x,y"]
    coarse_ids = {"Apple": 0, "Leek": 1, "Milk": 2}
    lines = {"train": [], "val": [], "test": []}
    for number, (name, (folder, coarse)) in enumerate(products.items()):
        rows.append(f"{name},{number},{coarse},{coarse_ids[coarse]},/i.jpg,/d.txt")
        for split, split_lines in lines.items():
            for i in range(2):
                path = f"{split}/{folder}/{name}_{i}.jpg"
                save_image(root / path, number, i + 10 * len(split))
                split_lines.append(f"{path}, {number}, {coarse_ids[coarse]}")
    (root / "classes.csv").write_text("\n".join(rows) + "\n")
    for split, split_lines in lines.items():
        (root / f"{split}.txt").write_text("\n".join(split_lines) + "\n")
    return root.parent


def test_split_folders_become_one_index(images):
    dataset = load(str(images))
    assert dataset.classes == CLASSES
    assert dataset.split_sizes() == {"train": 24, "val": 9, "test": 12}
    row = dataset.index.iloc[0]
    assert (row["width"], row["height"], row["mode"]) == (48, 40, "RGB")
    assert [dataset.classes[i] for i in dataset.targets] == dataset.index["label"].tolist()


def test_order_and_hash_do_not_depend_on_the_file_system(images, tmp_path, monkeypatch):
    first = load(str(images))
    copy = tmp_path / "copy"
    for path in sorted(images.rglob("*.jpg"), reverse=True):
        target = copy / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    second = load(str(copy))
    assert second.digest == first.digest
    assert second.index.equals(first.index)


def test_hash_changes_with_a_pixel_a_label_or_a_split(images):
    before = load(str(images)).digest
    moved = images / "train" / "apple" / "0.jpg"
    moved.rename(images / "train" / "banana" / "moved.jpg")
    relabelled = load(str(images)).digest
    (images / "train" / "banana" / "moved.jpg").rename(images / "test" / "apple" / "moved.jpg")
    resplit = load(str(images)).digest
    save_image(images / "test" / "apple" / "moved.jpg", 0, 99)
    assert len({before, relabelled, resplit, load(str(images)).digest}) == 4


def test_junk_is_skipped_but_no_image_is(images):
    before = len(load(str(images)).index)
    (images / MARK).write_text("this program's own")
    assert folders.passed_over(images) is None
    folder = images / "train" / "apple"
    junk = (".DS_Store", "Thumbs.db", "0.jpg:Zone.Identifier", "Picasa.ini", "ZbThumbnail.info")
    for name in junk:
        (folder / name).write_bytes(b"x")
    (images / "__MACOSX").mkdir()
    assert f"passed over {len(junk) + 1} that systems leave behind" in folders.passed_over(images)
    for name in ("UPPER.JPG", "b.jpeg", "c.png", "d.webp"):
        Image.new("RGB", (40, 40), len(name)).save(folder / name)
    assert len(load(str(images)).index) == before + 4


@given(st.lists(st.integers(10, 30), min_size=2, max_size=5), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_folder_of_classes_is_split_stratified_and_repeatably(tmp_path_factory, counts, salt):
    root = tmp_path_factory.mktemp("plain")
    images = [
        (root / str(label) / f"{salt}-{i}.jpg", str(label))
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    parts = list(folders._stratified(root, images))
    assert parts == list(folders._stratified(root, images))
    assert sorted(path for path, _, _ in parts) == sorted(path for path, _ in images)
    for label, count in enumerate(counts):
        found = Counter(split for _, name, split in parts if name == str(label))
        assert abs(found["test"] - 0.2 * count) <= 1.5
        assert abs(found["val"] - 0.1 * count) <= 1.5


def test_class_folders_alone_load(images):
    dataset = load(str(images / "train"))
    assert dataset.classes == CLASSES and sum(dataset.split_sizes().values()) == 24


def test_grocery_keeps_fruit_and_vegetables_and_both_label_levels(groceries):
    coarse, fine = load("grocery", "coarse", groceries), load("grocery", "fine", groceries)
    assert coarse.classes == ("Apple", "Leek")
    assert fine.classes == ("Granny-Smith", "Leek", "Pink-Lady")
    assert coarse.split_sizes() == {"train": 6, "val": 6, "test": 6}
    assert (coarse.name, fine.name) == ("grocery-coarse", "grocery-fine")
    assert load("grocery", "coarse", groceries / "dataset").digest == coarse.digest


def test_packages_come_with_grocery_all(groceries):
    whole = load("grocery-all", "coarse", groceries)
    assert whole.name == "grocery-all-coarse" and whole.classes == ("Apple", "Leek", "Milk")
    assert whole.split_sizes() == {"train": 8, "val": 8, "test": 8}


def test_levels_say_what_each_class_belongs_to(groceries):
    hierarchy = grocery.class_hierarchy(load("grocery-all", "fine", groceries).index)
    assert hierarchy.index.tolist() == ["Granny-Smith", "Leek", "Oat-Milk", "Pink-Lady"]
    assert hierarchy["fruit"].tolist() == ["Apple", "Leek", "Milk", "Apple"]
    assert hierarchy["category"].tolist() == ["Fruit", "Vegetables", "Packages", "Fruit"]


def test_grocery_may_lack_a_class_in_validation_but_not_in_training(groceries):
    for split in ("val", "train"):
        file = groceries / "dataset" / f"{split}.txt"
        lines = [line for line in file.read_text().splitlines() if "Leek" not in line]
        file.write_text("\n".join(lines))
        if split == "val":
            assert load("grocery", data=groceries).classes == ("Apple", "Leek")
    with pytest.raises(InputError, match="class 'Leek' has no images in train"):
        load("grocery", data=groceries)


def test_grocery_handed_out_as_the_kaggle_set_is_refused(groceries):
    with pytest.raises(InputError, match="Grocery Store Dataset, not of fruits-veges"):
        load("fruits-veges", data=groceries)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not on this machine")
def test_the_real_grocery_dataset_has_its_published_sizes_and_the_pinned_content():
    dataset = load("grocery", data=SHARED)
    assert len(dataset.classes) == 34 and len(load("grocery", "fine", SHARED).classes) == 50
    assert dataset.split_sizes() == {"train": 1776, "val": 196, "test": 1704}
    whole = load("grocery-all", "fine", SHARED)
    assert len(whole.classes) == 81
    assert whole.split_sizes() == {"train": 2640, "val": 296, "test": 2485}
    assert grocery.content_sha256(SHARED / "dataset") == grocery.GROCERY_SHA256


def test_environment_variable_points_at_a_copy(groceries, monkeypatch):
    monkeypatch.setenv("FRUITVEG_DATA", str(groceries))
    assert load("grocery").classes == ("Apple", "Leek")


def test_kaggle_layout(images):
    assert load("fruits-veges", data=images).split_sizes()["val"] == 3 * COUNTS["validation"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda root: shutil.rmtree(root / "validation" / "banana"), "'banana'.* in val"),
        (lambda root: shutil.rmtree(root / "validation"), "no folder for val beside test, train"),
        (lambda root: shutil.rmtree(root / "test"), "no folder for test.*--resplit"),
        (lambda root: (root / "more").mkdir(), "beside the splits, what is more"),
        (lambda root: (root / "Valid").mkdir(), "Valid and validation: two folders of one split"),
        (lambda root: save_image(root / "test" / "x.jpg", 0, 0), "x.jpg: it lies beside folders"),
        (lambda root: save_image(root / "x.JPEG", 0, 0), "x.JPEG: it lies beside folders"),
        (lambda root: (root / "test" / "apple" / "note.txt").write_text("hi"), "note.txt"),
        (lambda root: (root / "train" / "apple" / "0.jpg").write_bytes(b""), "0.jpg.*empty"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(images, change, named):
    change(images)
    with pytest.raises(InputError, match=named):
        load(str(images))


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "DEV", "Test"),
        ("seg_train", "seg_dev", "seg_test"),
        ("1 trainset", "2-val", "3test"),
    ],
    ids=lambda names: names[0],
)
def test_split_folders_go_by_other_names_in_any_case(images, names):
    before = load(str(images)).digest
    for old, new in zip(("train", "validation", "test"), names, strict=True):
        (images / old).rename(images / new)
    assert load(str(images)).digest == before


def test_a_class_may_be_called_test(images):
    (images / "train" / "apple").rename(images / "train" / "test")
    assert load(str(images / "train")).classes == ("banana", "cherry", "test")
    (images / "train" / "banana").rename(images / "train" / "train station")
    assert load(str(images / "train")).classes == ("cherry", "test", "train station")


@pytest.mark.parametrize(
    "names",
    [("training_set", "test_set"), ("Train images", "Valid images"), ("testdata", "1train")],
)
def test_an_odd_folder_beside_split_folders_of_several_words_is_asked_about(images, names):
    (images / "train").rename(images / names[0])
    (images / "test").rename(images / names[1])
    (images / "validation").rename(images / "single_prediction")
    with pytest.raises(InputError, match="beside the splits, what is single_prediction"):
        load(str(images))


def test_a_class_that_holds_only_folders_is_refused(images):
    shutil.rmtree(images / "validation")
    for number, split in enumerate(("train", "test"), 1):
        (images / split).rename(images / f"test{number}")
    with pytest.raises(InputError, match=r"test1: it holds only folders.*folders are the classes"):
        load(str(images))


def test_a_class_folder_is_no_data_set_and_an_empty_name_none(images):
    with pytest.raises(InputError, match=r"apple: it holds images.*give the folder above"):
        load(str(images / "train" / "apple"))
    with pytest.raises(InputError, match="unknown dataset ''"):
        load("")


@pytest.mark.parametrize("inner", ["images", "archive/images"])
def test_a_folder_of_data_sets_is_refused(images, tmp_path, inner):
    (tmp_path / "outer" / inner).parent.mkdir(parents=True)
    images.rename(tmp_path / "outer" / inner)
    with pytest.raises(InputError, match=r"images: it holds split folders.*give its own path"):
        load(str(tmp_path / "outer"))


def test_hidden_and_system_folders_are_passed_over_at_any_depth(images):
    before = load(str(images)).digest
    for folder in (".ipynb_checkpoints", "@eaDir", "more/.thumbs", "#recycle"):
        save_image(images / "train" / "apple" / folder / "0.jpg", 0, 7)
    save_image(images / "@eaDir" / "apple" / "0.jpg", 0, 7)
    assert load(str(images)).digest == before
    classes = load(str(images / "train")).digest
    for split in ("train", "test"):  # of another program's, not a data set among the classes
        save_image(images / "train" / "apple" / ".cache" / "other" / split / "0.jpg", 0, 7)
    assert load(str(images / "train")).digest == classes


def test_a_copy_is_of_a_named_set(images):
    for name in ("synthetic", str(images)):
        with pytest.raises(InputError, match=r"needs no copy.*--dataset"):
            load(name, data=images)


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(
        InputError, match=r"unknown dataset 'kiwis'.*synthetic, grocery, grocery-all, fruits-veges"
    ):
        load("kiwis")
    with pytest.raises(InputError, match="unknown label_level"):
        load("grocery", "medium")
    with pytest.raises(InputError, match=r"classes\.csv"):
        load("grocery", data=tmp_path)
    with pytest.raises(InputError, match="no images"):
        load(str(tmp_path))


def test_one_class_is_not_enough(tmp_path):
    for i in range(12):
        save_image(tmp_path / "only" / f"{i}.jpg", 0, i)
    with pytest.raises(InputError, match="at least two"):
        load(str(tmp_path))


def test_pixels_follow_the_index(images, home):
    dataset = load(str(images))
    pixels = dataset.pixels(32)
    assert pixels.shape == (45, 32, 32, 3)
    # conftest makes the class's channel the strongest
    assert np.array_equal(pixels.mean((1, 2)).argmax(1), dataset.targets)
