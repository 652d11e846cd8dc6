import re
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import PROJECT

from fruitveg_tl import cli
from fruitveg_tl.models.backbones import BACKBONES, Backbone, backbone_by_name
from fruitveg_tl.models.network import build_network, unfreeze
from fruitveg_tl.utils.errors import InputError

FEATURES = {"vgg16": 512, "resnet50": 2048, "mobilenetv2": 1280}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda b: b.name)


def images(n=4, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3)).astype(np.float32)


@every_backbone
def test_whole_saved_network_predicts_what_its_two_parts_predict(backbone, tmp_path):
    network = build_network(backbone, 5, 32)
    unfreeze(network.upper)
    network.upper.compile("adam", "sparse_categorical_crossentropy")
    x = images()
    activations = network.frozen.predict(x, verbose=0)
    network.upper.fit(activations, np.arange(4), epochs=2, verbose=0)
    in_two_steps = network.upper.predict(activations, verbose=0)
    network.model.save(tmp_path / "model.keras")
    whole = keras.saving.load_model(tmp_path / "model.keras")  # safe mode, no custom objects
    assert whole.input_shape == (None, 32, 32, 3)
    np.testing.assert_allclose(whole.predict(x, verbose=0), in_two_steps, atol=1e-6)
    np.testing.assert_allclose(in_two_steps.sum(1), 1, atol=1e-5)
    assert network.pool.output_shape == (None, FEATURES[backbone.key])


@every_backbone
def test_network_equals_the_plain_backbone_behind_its_own_preprocessing(backbone):
    plain = backbone.constructor(weights=None, include_top=False, input_shape=(32, 32, 3))
    network = build_network(backbone, 5, 32, plain.get_weights())
    x = images()
    expected = plain.predict(backbone.preprocess_input(x.copy()), verbose=0).mean((1, 2))
    pooled = network.pool.predict(network.frozen.predict(x, verbose=0), verbose=0)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    kept = zip(network.body.get_weights(), plain.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in kept)


def test_preprocessing_differs_where_the_published_weights_need_it():
    x = images(1)
    vgg, resnet, mobile = (b.preprocess_input(x.copy()) for b in BACKBONES.values())
    np.testing.assert_allclose(vgg, resnet)  # both: BGR, channel means removed
    np.testing.assert_allclose(vgg[..., 0], x[..., 2] - 103.939, atol=1e-4)
    np.testing.assert_allclose(mobile, x / 127.5 - 1, atol=1e-6)


@every_backbone
def test_fine_tuning_moves_the_upper_part_and_nothing_else(backbone):
    network = build_network(backbone, 3, 32)
    norms = [x for x in network.model.layers if isinstance(x, keras.layers.BatchNormalization)]
    unfreeze(network.upper)
    assert not any(layer.trainable for layer in norms)
    frozen_before = [w.copy() for layer in norms for w in layer.get_weights()]
    prefix_before, head_before = network.frozen.get_weights(), network.head.get_weights()[1]
    network.upper.compile("sgd", "sparse_categorical_crossentropy")
    activations = network.frozen.predict(images(6), verbose=0)
    network.upper.fit(activations, np.arange(6) % 3, verbose=0)
    for before, after in zip(prefix_before, network.frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    frozen_after = [w for layer in norms for w in layer.get_weights()]
    for before, after in zip(frozen_before, frozen_after, strict=True):
        np.testing.assert_array_equal(before, after)
    assert np.abs(network.head.get_weights()[1] - head_before).max() > 0
    trained = {v.path.split("/")[-2] for v in network.upper.trainable_variables}
    assert trained and not trained & {layer.name for layer in network.frozen.layers}


def test_whole_network_fit_keeps_batch_norm_statistics_still():
    # keras #20285: `training=False` at call time would not have been enough for this.
    network = build_network(BACKBONES["mobilenetv2"], 3, 32)
    unfreeze(network.model)
    network.model.compile("sgd", "sparse_categorical_crossentropy")
    norm = network.model.get_layer("block_14_project_BN")
    before = norm.moving_mean.numpy().copy()
    network.model.fit(images(6), np.arange(6) % 3, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), before)


@pytest.mark.parametrize("boundary", ["block_5_depthwise", "no such layer"])
def test_a_network_is_not_cut_where_a_branch_leads_around(boundary):
    backbone = replace(BACKBONES["mobilenetv2"], boundary=boundary)
    with pytest.raises(InputError, match=f"boundary {boundary}: MobileNetV2 cannot be cut there"):
        build_network(backbone, 3, 32)


def test_batch_norm_asked_to_move_does_so_behind_the_boundary_alone():
    network = build_network(BACKBONES["mobilenetv2"], 3, 32)
    unfreeze(network.upper, batch_norm=True)
    names = ("block_2_project_BN", "block_14_project_BN")
    means = [network.model.get_layer(name).moving_mean for name in names]
    before = [np.array(mean) for mean in means]
    network.upper.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    network.upper.train_on_batch(network.frozen.predict_on_batch(images(6)), np.arange(6) % 3)
    moved = [
        np.abs(np.array(mean) - old).max() > 0 for mean, old in zip(means, before, strict=True)
    ]
    assert moved == [False, True]


def test_from_scratch_everything_is_trained():
    network = build_network(BACKBONES["mobilenetv2"], 3, 32)
    unfreeze(network.model, batch_norm=True)
    norm = network.model.get_layer("block_2_project_BN")
    before = norm.moving_mean.numpy().copy()
    network.model.compile("sgd", "sparse_categorical_crossentropy")
    network.model.fit(images(6), np.arange(6) % 3, verbose=0)
    assert len(network.model.non_trainable_variables) == 2 * 52  # the statistics of 52 BatchNorms
    assert np.abs(norm.moving_mean.numpy() - before).max() > 0


def test_only_the_head_learns_before_anything_is_unfrozen():
    network = build_network(BACKBONES["mobilenetv2"], 3, 32)
    assert [v.path for v in network.model.trainable_variables] == ["head/kernel", "head/bias"]


@every_backbone
def test_urls_and_checksums_are_those_of_keras(backbone):
    import inspect

    from keras.src.applications import mobilenet_v2, resnet, vgg16

    source = {"vgg16": vgg16, "resnet50": resnet, "mobilenetv2": mobilenet_v2}[backbone.key]
    text = inspect.getsource(source)
    published = {
        "vgg16": vgg16.WEIGHTS_PATH_NO_TOP,
        "resnet50": resnet.BASE_WEIGHTS_PATH
        + "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "mobilenetv2": mobilenet_v2.BASE_WEIGHT_PATH
        + "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    }
    assert backbone.weights_url == published[backbone.key]
    assert backbone.weights_md5 is None or backbone.weights_md5 in text


def test_unknown_backbone_lists_the_known_ones():
    assert backbone_by_name("ResNet50") is BACKBONES["resnet50"]
    with pytest.raises(InputError, match=r"'alexnet'.*VGG16, ResNet50, MobileNetV2"):
        backbone_by_name("alexnet")


def documented():
    """Return the entries that README shows as examples."""
    text = (PROJECT / "fruitveg_tl" / "README.md").read_text()
    entries = re.search(r"```python\nmore = (\(.*?\n\))\n```", text, re.DOTALL)[1]
    return eval(entries, {"Backbone": Backbone, "_KERAS": "https://example.org"})


@pytest.mark.parametrize("entry", documented(), ids=lambda entry: entry.name)
def test_the_examples_of_the_readme_are_backbones(entry):
    network = build_network(entry, 3, 32)
    assert network.frozen.layers[-1].name == entry.boundary
    assert (
        network.upper.get_layer(entry.last_conv).output.shape[-1] == network.pool.output_shape[-1]
    )
    unfreeze(network.upper)
    norms = [x for x in network.model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert not any(norm.trainable for norm in norms)


def test_a_backbone_added_at_run_time_is_trained_and_listed(quick, home, monkeypatch, capsys):
    vgg19, *_ = documented()
    monkeypatch.setitem(BACKBONES, vgg19.key, vgg19)
    run = quick.train(backbone="vgg19")
    assert run.backbone_name == "VGG19" and run.load_model().get_layer("block5_conv4")
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert "vgg19" in capsys.readouterr().out
