import pytest
from conftest import scene, write_scenes

from fruitveg_tl.data import audit, resplit
from fruitveg_tl.data.dataset import UNUSED
from fruitveg_tl.data.registry import load
from fruitveg_tl.utils.errors import InputError


@pytest.fixture
def laid_out(tmp_path, home):
    """Two classes of twelve training images, two of them in the test split; one of too few."""
    images = {
        f"train/{name}/{i}.png": scene(1000 * n + i)
        for n, (name, count) in enumerate((("kiwi", 12), ("pear", 12), ("fig", 2)))
        for i in range(count)
    }
    images |= {f"test/{name}/{i}.png": scene(9000 + i) for i, name in enumerate(("kiwi", "pear"))}
    images["test/kiwi/exact.png"] = images["train/kiwi/3.png"]
    images["test/pear/near.png"] = images["train/pear/4.png"].point(lambda v: min(255, v + 9))
    images["test/fig/leak.png"] = images["train/fig/1.png"]
    images["val/kiwi/tested.png"] = images["test/kiwi/0.png"]
    images |= {f"train/plum/{i}.png": scene(7000 + i) for i in range(4)}  # never tested
    whole = load(write_scenes(tmp_path / "part", images), complete=False)
    pairs = audit.duplicates(whole, whole.pixels(64))
    return resplit.with_and_without(whole, pairs)


def test_two_sets_differ_in_the_leaked_training_images_alone(laid_out):
    leaky, clean = laid_out[resplit.WITH], laid_out[resplit.WITHOUT]
    assert (leaky.name, clean.name) == ("part-with-leaks", "part-without-leaks")
    assert leaky.classes == clean.classes == ("kiwi", "pear")  # of figs one would remain
    assert leaky.split_sizes() == {"train": 22, "val": 2, "test": 4}
    assert clean.split_sizes() == {"train": 20, "val": 2, "test": 4}
    for split in ("val", "test"):
        assert leaky.rows(split).tolist() == clean.rows(split).tolist()
    assert set(clean.rows("train")) < set(leaky.rows("train"))
    assert leaky.order == clean.order  # the same rows, the same decoded pixels


def test_validation_images_are_no_leaks(laid_out):
    for dataset in laid_out.values():
        pairs = audit.duplicates(dataset, dataset.pixels(64))
        used = pairs[(pairs[["first_split", "second_split"]] != UNUSED).all(axis=1)]
        assert "val" not in used[["first_split", "second_split"]].to_numpy()
    assert not len(used) and not len(audit.leaked_test_rows(pairs))  # nothing is there twice


def test_a_set_that_leaks_wholly_is_refused(tmp_path, home):
    images = {f"train/{name}/0.png": scene(n) for n, name in enumerate(("kiwi", "pear"))}
    images |= {name.replace("train", "test"): image for name, image in images.items()}
    whole = load(write_scenes(tmp_path / "leaky", images), complete=False)
    pairs = audit.duplicates(whole, whole.pixels(64))
    with pytest.raises(InputError, match="fewer than two classes keep training images"):
        resplit.with_and_without(whole, pairs)
