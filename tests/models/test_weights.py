import hashlib
import http.server
import threading
from dataclasses import replace
from functools import partial

import h5py
import keras
import numpy as np
import pytest
from conftest import PROJECT
from keras.src.legacy.saving import legacy_h5_format

from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.utils.errors import InputError

MOBILENET = BACKBONES["mobilenetv2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A true MobileNetV2 weights file with known values."""
    model = MOBILENET.constructor(weights=None, include_top=False, input_shape=(32, 32, 3))
    file = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    model.save_weights(file)
    return file


@pytest.fixture
def server(tmp_path):
    """Serve a folder on this machine; yields (folder, address, list of requested paths)."""
    asked = []
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=folder)
    ) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def served(backbone, address, content: bytes | None = None):
    md5 = hashlib.md5(content).hexdigest() if content else None
    url = f"{address}/{backbone.weights_name}"
    return replace(backbone, weights_url=url, weights_md5=md5)


def first_kernel(path):
    with h5py.File(path) as content:
        return content["layers/conv2d/vars/0"][:]


def test_explicit_file_is_loaded_and_named_by_its_hash(home, file):
    source = weights.resolve(MOBILENET, str(file))
    np.testing.assert_array_equal(source.values[0], first_kernel(file))
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source.source == source.file == "mine.weights.h5"


def test_a_known_file_is_named_by_what_it_is(home, file, monkeypatch):
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.KNOWN, sha256, "ImageNet (somebody's)")
    source = weights.resolve(MOBILENET, str(file))
    assert source.source == "ImageNet (somebody's)" and source.file == file.name


SHARED = PROJECT.parent / "shared" / "weights"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recovered weights are not on this machine")
def test_the_recovered_weights_are_found_by_name_and_known(home, monkeypatch):
    monkeypatch.setenv("FRUITVEG_WEIGHTS", str(SHARED))
    found = [weights.resolve(backbone).source for backbone in BACKBONES.values()]
    assert found == ["ImageNet (torchvision)", "ImageNet (pruned, 8 bit)", "ImageNet (8 bit)"]


def test_folder_comes_before_keras(home, file, tmp_path, monkeypatch):
    name = "mobilenet_v2_imagenet_notop.weights.h5"
    (tmp_path / name).write_bytes(file.read_bytes())
    monkeypatch.setenv("FRUITVEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "_keras_file", lambda backbone: pytest.fail("asked Keras"))
    assert weights.resolve(MOBILENET).file == name


def test_download_is_checked_cached_and_not_repeated(home, server):
    folder, address, asked = server
    model = BACKBONES["vgg16"].constructor(weights=None, include_top=False)
    published = folder / BACKBONES["vgg16"].weights_name
    with h5py.File(published, "w") as target:  # Keras publishes its weights in the old format
        legacy_h5_format.save_weights_to_hdf5_group(target, model)
    backbone = served(BACKBONES["vgg16"], address, published.read_bytes())
    first, second = weights.resolve(backbone), weights.resolve(backbone)
    assert first.source == "ImageNet (Keras)" and first.digest == second.digest
    np.testing.assert_array_equal(first.values[0], model.get_weights()[0])
    assert len(asked) == 1


def test_wrong_bytes_from_the_server_are_refused(home, server):
    folder, address, _ = server
    backbone = served(BACKBONES["vgg16"], address, b"the right content")
    (folder / backbone.weights_name).write_bytes(b"something else")
    with pytest.raises(weights.Unreachable, match=r"VGG16.*FRUITVEG_WEIGHTS"):
        weights.resolve(backbone)


@pytest.mark.parametrize("content", [b"", b"an error page", "half"])
@pytest.mark.reliability("downloads that fail, then work")
def test_a_damaged_file_without_a_checksum_does_not_stay_in_the_cache(home, server, file, content):
    """Keras publishes none for MobileNetV2, so that only reading shows the damage."""
    folder, address, _ = server
    backbone = served(MOBILENET, address)
    whole = file.read_bytes()
    # Keras reads a weights file by the ending of its name; this one is stored in its new format.
    backbone = replace(backbone, weights_url=f"{address}/mobilenet.weights.h5")
    published = folder / "mobilenet.weights.h5"
    published.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(InputError, match="the download was deleted"):
        weights.resolve(backbone)
    published.write_bytes(whole)
    np.testing.assert_array_equal(weights.resolve(backbone).values[0], first_kernel(file))


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", None])
def test_no_server_or_no_file_gives_one_line_with_the_ways_out(home, server, address):
    with pytest.raises(weights.Unreachable) as caught:
        weights.resolve(served(MOBILENET, address or server[1]))
    message = str(caught.value)
    assert "\n" not in message
    assert "FRUITVEG_WEIGHTS" in message and "--weights random" in message


@pytest.fixture
def bundled(home):
    """What the project bundles, here some values of which one kernel is rounded."""
    values = MOBILENET.constructor(weights=None, include_top=False).get_weights()
    stored = {f"{i:03d}-value": value for i, value in enumerate(values)}
    kernel = np.rint(100 * stored.pop("000-value")).astype(np.int8)
    scale = np.full((1, 1, 1, kernel.shape[3]), 0.01, np.float32)
    weights.bundled_file(MOBILENET).parent.mkdir()
    kept = {"000-kernel": kernel, "000-scale": scale}
    np.savez(weights.bundled_file(MOBILENET), **kept, **stored)
    return [kernel * scale, *values[1:]]


def test_without_a_server_the_bundled_weights_is_used_and_named(bundled):
    found = weights.resolve(served(MOBILENET, "http://127.0.0.1:9"))
    assert found.source == weights.BUNDLED == "Tiny ImageNet (bundled)"
    assert found.file == "mobilenetv2_tiny_imagenet_notop.npz"
    for one, other in zip(found.values, bundled, strict=True):
        np.testing.assert_array_equal(one, other)
    assert weights.resolve(MOBILENET, "bundled").digest == found.digest


def test_what_keras_publishes_comes_before_the_bundled_weights(bundled, server, file):
    folder, address, _ = server
    (folder / "mobilenet.weights.h5").write_bytes(file.read_bytes())
    backbone = replace(MOBILENET, weights_url=f"{address}/mobilenet.weights.h5", weights_md5=None)
    assert weights.resolve(backbone).source == "ImageNet (Keras)"


def test_a_rounded_file_of_another_backbone_is_refused(bundled):
    file = weights.bundled_file(MOBILENET)
    with pytest.raises(InputError, match=r"notop\.npz: not weights of VGG16"):
        weights.resolve(BACKBONES["vgg16"], str(file))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not weights of MobileNetV2"):
        weights.resolve(MOBILENET, "bundled")


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_the_project_ships_every_backbone_with_its_card(backbone):
    file = weights.bundled_file(backbone)
    card = weights.card(backbone)
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["backbone"] == backbone.name and "non-commercial" in card["licence"]
    assert 5 / 202 < card["held_out_accuracy_rounded"] < 1  # five times what guessing gives
    assert weights.resolve(backbone, "bundled").sha256 == card["sha256"]
    shown = f"{card['held_out_accuracy']:.3f} | {card['held_out_accuracy_rounded']:.3f}"
    told = f"| {backbone.name} | {shown} | {card['epochs_in_all']} | "
    assert (
        f"{told}{card['seconds_in_all'] / 60:.1f} min |" in (file.parent / "README.md").read_text()
    )


def test_random_is_seeded_and_says_so(home):
    one, same, other = (weights.resolve(MOBILENET, "random", seed) for seed in (0, 0, 1))
    assert one.source == weights.RANDOM == "none (random)"
    assert one.sha256 is None and one.file is None
    assert one.digest == same.digest != other.digest


def test_files_that_cannot_be_used(home, file, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such weights file"):
        weights.resolve(MOBILENET, str(tmp_path / "absent.h5"))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match=r"text\.h5: not weights of MobileNetV2"):
        weights.resolve(MOBILENET, str(tmp_path / "text.h5"))
    with pytest.raises(InputError, match=r"mine\.weights\.h5: not weights of VGG16"):
        weights.resolve(BACKBONES["vgg16"], str(file))
    monkeypatch.setenv("FRUITVEG_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere: no such folder"):
        weights.resolve(MOBILENET)


@pytest.mark.parametrize("key", BACKBONES)
def test_a_folder_without_the_file_is_an_error_naming_the_names_it_may_have(
    home, tmp_path, monkeypatch, key
):
    backbone = BACKBONES[key]
    monkeypatch.setenv("FRUITVEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "_keras_file", lambda backbone: pytest.fail("asked Keras"))
    with pytest.raises(InputError) as caught:
        weights.resolve(backbone)
    for words in (str(tmp_path), backbone.name, backbone.weights_name, f"{backbone.module}_image"):
        assert words in str(caught.value)


@pytest.mark.parametrize("key", BACKBONES)
def test_random_weights_carry_the_signal_to_the_last_layer(home, key):
    backbone = BACKBONES[key]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 1, 1, 3)) + rng.normal(0, 20, (24, 48, 48, 3))
    values = weights.estimate_batch_norm_statistics(
        backbone, weights.resolve(backbone, "random").values, images
    )
    model = backbone.constructor(weights=None, include_top=False, input_shape=(48, 48, 3))
    model.set_weights(values)
    features = model.predict_on_batch(backbone.preprocess_input(images.copy())).mean((1, 2))
    assert 0.01 < features.std() < 1000
    assert np.linalg.matrix_rank(features, tol=1e-3 * np.abs(features).max()) > 3


def test_statistics_of_batches_are_those_of_all_images_at_the_first_layer(home, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.normal(100, 40, (50, 32, 32, 3)).astype(np.float32)
    values = weights.resolve(MOBILENET, "random").values
    found = weights.estimate_batch_norm_statistics(MOBILENET, values, images)
    model = MOBILENET.constructor(weights=None, include_top=False, input_shape=(32, 32, 3))
    model.set_weights(found)
    first = next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    seen = keras.Model(model.input, first.input)(MOBILENET.preprocess_input(images.copy()))
    seen = keras.ops.convert_to_numpy(seen)
    np.testing.assert_allclose(first.moving_mean, seen.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first.moving_variance, seen.var((0, 1, 2)), rtol=1e-3)
    # Never more than one batch goes through the network at a time.
    sizes = []
    call = keras.Model.__call__
    monkeypatch.setattr(
        keras.Model, "__call__", lambda self, x, **o: sizes.append(len(x)) or call(self, x, **o)
    )
    weights.estimate_batch_norm_statistics(MOBILENET, values, images)
    assert max(sizes) == weights.STATISTICS_BATCH and sum(sizes) == len(images)
