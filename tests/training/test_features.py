import keras
import numpy as np
import pytest
from conftest import write_images
from PIL import Image

from fruitveg_tl.config import PATHS, RunConfig
from fruitveg_tl.data import augmentation, registry
from fruitveg_tl.data.augmentation import augmenter
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network
from fruitveg_tl.training.features import frozen_outputs, outputs_of
from fruitveg_tl.training.inference import BATCH
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError

N = BATCH + 8  # more than one batch, the last one smaller


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    colours, noise = rng.integers(0, 216, (N, 1, 1, 3)), rng.integers(0, 40, (N, 32, 32, 3))
    return (colours + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_network(BACKBONES["vgg16"], 3, 32)


@pytest.fixture
def loaded(home, tmp_path):
    """Images that differ in their colours, more to train on than a batch holds."""
    root = write_images(tmp_path / "images", counts=(12, 1, 1))
    rng = np.random.default_rng(0)
    for file in sorted(root.rglob("*.jpg")):
        colour, noise = rng.integers(0, 216, (1, 1, 3)), rng.integers(0, 40, (40, 40, 3))
        Image.fromarray((colour + noise).astype(np.uint8)).save(file)
    return registry.load(str(root))


def recipe(views=1, **changes):
    return RunConfig("vgg16", size=32, views=views, **changes)


def test_stored_outputs_are_those_of_the_frozen_layers(loaded, network, monkeypatch):
    monkeypatch.setattr(runtime, "fast_precision", lambda gains: "float32")
    found = frozen_outputs(network.frozen, loaded, recipe(2))
    pixels, train = loaded.pixels(32), loaded.rows("train")
    assert len(train) > BATCH  # more than one batch
    expected = network.frozen.predict(pixels.astype(np.float32), verbose=0)
    assert found.held_out.dtype == np.float32 and found.views[0].dtype == np.float16
    np.testing.assert_allclose(found.held_out, expected[loaded.held_out], rtol=1e-5, atol=1e-5)
    close = {"rtol": 2e-3, "atol": 1e-3 * expected.max()}
    np.testing.assert_allclose(found.views[0], expected[train], **close)
    pooled = outputs_of(network.pool, found, recipe(2))
    means = network.pool.predict(expected, verbose=0)
    np.testing.assert_allclose(pooled.held_out, means[loaded.held_out], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pooled.views[0], means[train], **close)
    assert [view.shape for view in found.views] == [(len(train), *expected.shape[1:])] * 3
    assert pooled.shape == (512,) and len(pooled.views) == 3
    # Every row of a view belongs to its image: on average nearer to it than to others.
    ours = pooled.views[0]
    for view in pooled.views[1:]:
        apart = [np.abs(view - np.roll(ours, shift, 0)).mean() for shift in (0, 1, 7)]
        assert apart[0] < 0.9 * min(apart[1:])


def test_views_differ_from_each_other_and_are_the_same_next_time(
    loaded, network, tmp_path, monkeypatch
):
    first = frozen_outputs(network.frozen, loaded, recipe(2))
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path / "other"))
    again = frozen_outputs(network.frozen, loaded, recipe(2))
    assert np.abs(first.views[1].astype(np.float32) - first.views[2]).max() > 0
    for one, other in zip(first.views, again.views, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_on_disk_is_reused_and_only_missing_views_are_added(loaded, network):
    first = frozen_outputs(network.frozen, loaded, recipe(1))
    assert not first.reused
    (folder,) = (path for path in PATHS.cache.glob("activations/*frozen*") if path.is_dir())
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    more = frozen_outputs(network.frozen, loaded, recipe(2))
    assert not more.reused and len(more.views) == 3
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    last = frozen_outputs(network.frozen, loaded, recipe(2))
    assert last.reused and last.seconds == pytest.approx(more.seconds)
    # Other splits of the same images have parts of their own.
    swapped = loaded.index["split"].map({"train": "test", "test": "train", "val": "val"})
    other = frozen_outputs(network.frozen, loaded.with_splits(swapped, "other"), recipe(2))
    assert not other.reused and len(other.views[0]) == (swapped == "train").sum()


def test_another_network_gives_other_outputs(loaded, network, monkeypatch):
    """Other weights, another boundary, another backend: what is stored is not taken for them."""
    keys = [frozen_outputs(network.frozen, loaded, recipe(0)).key]
    other = build_network(BACKBONES["vgg16"], 3, 32)
    keys.append(frozen_outputs(other.frozen, loaded, recipe(0)).key)
    layer = network.model.get_layer("block3_pool")
    earlier = keras.Model(network.model.inputs, layer.output, name="frozen")
    keys.append(frozen_outputs(earlier, loaded, recipe(0)).key)
    assert frozen_outputs(network.frozen, loaded, recipe(0)).key == keys[0]
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")
    keys.append(frozen_outputs(network.frozen, loaded, recipe(0)).key)
    assert len(set(keys)) == 4


def test_without_a_network_the_pixels_themselves_are_kept(loaded):
    found = frozen_outputs(None, loaded, recipe(1))
    pixels, train = loaded.pixels(32), loaded.rows("train")
    np.testing.assert_array_equal(found.views[0], pixels[train])
    np.testing.assert_array_equal(found.held_out, pixels[loaded.held_out])
    assert found.views[1].dtype == np.uint8
    assert (found.views[1] != pixels[train]).mean() > 0.3


def test_values_too_large_for_float16_are_refused_and_nothing_is_left(loaded):
    broken = build_network(BACKBONES["vgg16"], 3, 32)
    broken.frozen.set_weights([w * 100 for w in broken.frozen.get_weights()])
    with pytest.raises(InputError, match="not finite"):
        frozen_outputs(broken.frozen, loaded, recipe(0))
    assert not list(PATHS.cache.glob("activations/*/view*.npy"))


def test_augmentation_is_seeded_keeps_the_range_and_changes_with_every_batch(pixels):
    x = pixels[:8].astype(np.float32)
    one, two = augmenter(7), augmenter(7)
    first = np.asarray(one(x, training=True))
    np.testing.assert_array_equal(first, np.asarray(two(x, training=True)))
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 255
    assert np.abs(first - np.asarray(one(x, training=True))).mean() > 1
    np.testing.assert_array_equal(np.asarray(one(x, training=False)), x)


def test_augmentation_moves_about_the_centre_and_leaves_greys_grey(pixels, monkeypatch):
    neutral = dict.fromkeys(augmentation.RANGES, (0.0, 0.0))
    neutral |= dict.fromkeys(("zoom", "contrast", "saturation"), (1.0, 1.0))
    x = pixels[:8].astype(np.float32)
    monkeypatch.setattr(augmentation, "RANGES", neutral)
    still = np.asarray(augmenter(3)(x, training=True))
    mirrored = [np.allclose(a, b[:, ::-1], atol=0.1) for a, b in zip(still, x, strict=True)]
    assert 0 < sum(mirrored) < 8  # some, and the others stay as they are
    np.testing.assert_allclose(still[~np.array(mirrored)], x[~np.array(mirrored)], atol=0.1)

    half = neutral | {"turn": (0.25, 0.25), "zoom": (0.5, 0.5)}  # a quarter turn, zoomed in twice
    monkeypatch.setattr(augmentation, "RANGES", half)
    spot = np.zeros((1, 32, 32, 3), np.float32)
    spot[0, 14:18, 20:24] = 255  # right of the centre, by 6
    turned = np.asarray(augmenter(0)(spot, training=True))[0, ..., 0]
    rows, columns = np.nonzero(turned > 128)
    assert abs(columns.mean() - 15.5) < 1 and abs(abs(rows.mean() - 15.5) - 12) < 1

    monkeypatch.setattr(augmentation, "RANGES", neutral | {"hue": (0.1, 0.1)})
    grey = np.full((1, 8, 8, 3), 90, np.float32)
    np.testing.assert_allclose(np.asarray(augmenter(0)(grey, training=True)), grey, atol=0.1)
    red = np.zeros((1, 8, 8, 3), np.float32)
    red[..., 0] = 200
    assert np.ptp(np.asarray(augmenter(0)(red, training=True))[0, 4, 4]) < 199
