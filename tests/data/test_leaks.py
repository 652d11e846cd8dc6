import pandas as pd
import pytest
from conftest import scene, write_scenes

from fruitveg_tl.data import audit, leaks
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
    whole = load(write_scenes(tmp_path / "part", images), complete=False)
    pairs = audit.duplicates(whole, whole.pixels(64))
    folders = leaks.with_and_without(whole, pairs, tmp_path / "laid out")
    return {name: load(str(folder)) for name, folder in folders.items()}


def test_two_sets_differ_in_the_leaked_training_images_alone(laid_out):
    leaky, clean = laid_out[leaks.WITH], laid_out[leaks.WITHOUT]
    assert (leaky.name, clean.name) == ("part-with-leaks", "part-without-leaks")
    assert leaky.classes == clean.classes == ("kiwi", "pear")  # of figs one would remain
    assert leaky.split_sizes() == {"train": 22, "val": 2, "test": 4}
    assert clean.split_sizes() == {"train": 20, "val": 2, "test": 4}
    rows = {name: set(zip(s.index["split"], s.index["sha256"], strict=True)) for name, s in
            (("leaky", leaky), ("clean", clean))}  # fmt: skip
    assert rows["clean"] < rows["leaky"]
    assert {split for split, _ in rows["leaky"] - rows["clean"]} == {"train"}


def test_validation_images_are_no_leaks(laid_out):
    for dataset in laid_out.values():
        pairs = audit.duplicates(dataset, dataset.pixels(64))
        splits = pd.unique(pairs[["first_split", "second_split"]].to_numpy().ravel())
        assert "val" not in splits
    assert not len(pairs)  # without leaks, nothing stands twice


def test_laid_out_again_it_holds_what_the_set_holds_by_then(laid_out, tmp_path):
    def again():
        whole = load(str(tmp_path / "part"), complete=False)
        pairs = audit.duplicates(whole, whole.pixels(64))
        return load(str(leaks.with_and_without(whole, pairs, tmp_path / "laid out")[leaks.WITH]))

    assert again().digest == laid_out[leaks.WITH].digest
    (tmp_path / "part" / "train" / "kiwi" / "0.png").unlink()
    assert len(again().index) == len(laid_out[leaks.WITH].index) - 1


def test_a_set_that_leaks_wholly_is_refused(tmp_path, home):
    images = {f"train/{name}/0.png": scene(n) for n, name in enumerate(("kiwi", "pear"))}
    images |= {name.replace("train", "test"): image for name, image in images.items()}
    whole = load(write_scenes(tmp_path / "leaky", images), complete=False)
    pairs = audit.duplicates(whole, whole.pixels(64))
    with pytest.raises(InputError, match="fewer than two classes keep training images"):
        leaks.with_and_without(whole, pairs, tmp_path / "laid out")
