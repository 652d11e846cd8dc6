import keras
import numpy as np
import pytest

from fruitveg_tl.data import augmentation
from fruitveg_tl.data.augmentation import augmenter
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network
from fruitveg_tl.training.features import BATCH, FrozenPart, activations_key
from fruitveg_tl.utils.errors import InputError

N = BATCH + 8  # more than one batch, the last one smaller
HELD_OUT, TRAIN = np.arange(3), np.arange(3, N)


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
def frozen(network, tmp_path):
    """Make a frozen part that stores in a folder."""
    parts = network.prefix, network.pool
    return lambda name="a": FrozenPart(parts, parts, tmp_path / name)


def test_stored_activations_are_those_of_the_frozen_part(pixels, network, frozen):
    found = frozen().compute(pixels, TRAIN, HELD_OUT, 2)
    expected = network.prefix.predict(pixels.astype(np.float32), verbose=0)
    assert found.held_out.dtype == np.float32 and found.views[0].dtype == np.float16
    np.testing.assert_allclose(found.held_out, expected[HELD_OUT], rtol=1e-5, atol=1e-5)
    close = {"rtol": 2e-3, "atol": 1e-3 * expected.max()}
    np.testing.assert_allclose(found.views[0], expected[TRAIN], **close)
    pooled = network.pool.predict(expected, verbose=0)
    np.testing.assert_allclose(found.pooled_held_out, pooled[HELD_OUT], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.pooled_views[0], pooled[TRAIN], **close)
    assert [view.shape for view in found.views] == [(len(TRAIN), *expected.shape[1:])] * 3
    # Every row of a view belongs to its image: on average nearer to it than to others.
    ours = found.pooled_views[0]
    for view in found.pooled_views[1:]:
        apart = [np.abs(view - np.roll(ours, shift, 0)).mean() for shift in (0, 1, 7)]
        assert apart[0] < 0.9 * min(apart[1:])


def test_views_differ_from_each_other_and_are_the_same_next_time(pixels, frozen):
    first, again = (frozen(name).compute(pixels, TRAIN, HELD_OUT, 2) for name in "ab")
    assert np.abs(first.views[1].astype(np.float32) - first.views[2]).max() > 0
    for one, other in zip(first.views, again.views, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_on_disk_is_reused_and_only_missing_views_are_added(pixels, frozen, tmp_path):
    first = frozen().compute(pixels, TRAIN, HELD_OUT, 1)
    assert not first.reused
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()}
    more = frozen().compute(pixels, TRAIN, HELD_OUT, 2)
    assert not more.reused and len(more.views) == 3
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    last = frozen().compute(pixels, TRAIN, HELD_OUT, 2)
    assert last.reused and last.seconds == pytest.approx(more.seconds)
    # Other splits of the same images have parts of their own.
    other = frozen().compute(pixels, HELD_OUT, TRAIN, 2)
    assert not other.reused and len(other.held_out) == len(TRAIN)


def test_the_disk_it_asks_for_is_the_disk_it_takes(pixels, network, tmp_path):
    frozen = FrozenPart((network.prefix, None), (network.prefix, None), tmp_path / "a")
    wanted = frozen.missing_bytes(TRAIN, HELD_OUT, 32, 2)
    frozen.compute(pixels, TRAIN, HELD_OUT, 2)
    taken = sum(file.stat().st_size for file in (tmp_path / "a").glob("*.npy"))
    assert wanted == pytest.approx(taken, rel=0.02)
    assert frozen.missing_bytes(TRAIN, HELD_OUT, 32, 2) == 0
    assert frozen.missing_bytes(TRAIN, HELD_OUT, 32, 3) > 0
    raw = FrozenPart((None, None), (None, None), tmp_path / "b")
    assert raw.missing_bytes(np.arange(2), np.arange(1), 32, 1) == 5 * 32 * 32 * 3


def test_without_a_prefix_the_pixels_themselves_are_kept(pixels, tmp_path):
    raw = FrozenPart((None, None), (None, None), tmp_path / "a")
    found = raw.compute(pixels, TRAIN, HELD_OUT, 1)
    np.testing.assert_array_equal(found.views[0], pixels[TRAIN])
    np.testing.assert_array_equal(found.held_out, pixels[HELD_OUT])
    assert found.views[1].dtype == np.uint8 and found.pooled_held_out is None
    assert (found.views[1] != pixels[TRAIN]).mean() > 0.3


def test_values_too_large_for_float16_are_refused_and_nothing_is_left(pixels, tmp_path):
    broken = build_network(BACKBONES["vgg16"], 3, 32)
    broken.prefix.set_weights([w * 100 for w in broken.prefix.get_weights()])
    parts = broken.prefix, broken.pool
    with pytest.raises(InputError, match="not finite"):
        FrozenPart(parts, parts, tmp_path / "a").compute(pixels, TRAIN, HELD_OUT, 0)
    assert not list((tmp_path / "a").glob("view*.npy"))


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


def test_one_process_finds_again_what_it_stored(monkeypatch):
    asked = "pixels", "vgg16", "weights", "float32"
    keys = {activations_key(*asked) for _ in range(3)}
    assert len(keys) == 1
    assert activations_key("pixels", "vgg16", "other weights", "float32") not in keys
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")
    assert activations_key(*asked) not in keys
