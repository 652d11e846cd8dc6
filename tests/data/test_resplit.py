import pandas as pd
import pytest
from conftest import scene, write_scenes

from fruitveg_tl.data import audit
from fruitveg_tl.data.registry import load
from fruitveg_tl.data.resplit import FOLDS
from fruitveg_tl.utils.errors import InputError


@pytest.fixture
def partial(tmp_path):
    """Classes of 40, 12 and 2 images, most of them twice, in a train and a test split."""
    images = {
        f"train/{name}/{i}.png": scene(1000 * n + i)
        for n, (name, count) in enumerate((("kiwi", 40), ("pear", 12), ("fig", 2)))
        for i in range(count)
    }
    images |= {f"test/kiwi/again{i}.png": images[f"train/kiwi/{i}.png"] for i in range(10)}
    images["test/pear/brighter.png"] = scene(1003).point(lambda v: min(255, v + 12))
    return write_scenes(tmp_path / "partial", images)


def test_as_it_is_a_partial_copy_is_refused_with_the_way_out(partial, home):
    with pytest.raises(InputError, match=r"no folder for val.*--resplit"):
        load(partial)


def test_as_it_is_a_partial_copy_can_be_looked_at(partial, home):
    dataset = load(partial, complete=False)
    assert dataset.split_sizes() == {"train": 54, "val": 0, "test": 11}


def test_every_fold_keeps_all_images_and_tears_no_duplicates_apart(partial, home):
    tested = []
    for fold in range(1, FOLDS + 1):
        dataset = load(partial, fold=fold)
        assert dataset.name == f"partial-resplit{fold}" and len(dataset.index) == 65
        assert not len(audit.leaked_test_rows(audit.duplicates(dataset, dataset.pixels(64))))
        counts = pd.crosstab(dataset.index["label"], dataset.index["split"])
        assert (counts[["train", "test"]] > 0).all(axis=None)
        assert (counts.loc[["kiwi", "pear"], "val"] > 0).all()
        assert (
            counts.loc["kiwi"] / 50 - pd.Series({"train": 0.7, "val": 0.1, "test": 0.2})
        ).abs().max() < 0.1
        tested += dataset.index["path"][dataset.rows("test")].tolist()
    large = [path for path in tested if "/fig/" not in path]
    assert len(large) == len(set(large)) == 63  # once each
    assert load(partial, fold=2).digest == load(partial, fold=2).digest != dataset.digest


def test_class_folders_alone_are_dealt_as_well(partial, home):
    dataset = load(f"{partial}/train", fold=1)
    assert set(dataset.index["split"]) == {"train", "val", "test"}


def test_a_class_of_one_group_is_named(partial, home):
    for i in range(6):
        scene(1).save(f"{partial}/train/fig/{i}.png")
    with pytest.raises(InputError, match="class 'fig' cannot be split") as caught:
        load(partial, fold=1)
    assert "kiwi" not in str(caught.value)
