"""A network in another number type: the same network, only faster."""

import keras
import numpy as np
import pytest

from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network, unfreeze
from fruitveg_tl.training.inference import in_precision


@pytest.fixture(params=["resnet50", "mobilenetv2"])
def upper(request):
    keras.utils.set_random_seed(0)
    upper = build_network(BACKBONES[request.param], 3, 64).upper
    unfreeze(upper)
    return upper


def trained(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    model.compile(keras.optimizers.SGD(0.01), "categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(x, y)
    return model.get_weights()


def test_a_copy_computes_and_learns_the_same_with_weights_of_its_own(upper):
    copy = in_precision(upper, "mixed_bfloat16")
    assert {layer.compute_dtype for layer in copy.layers} == {"bfloat16", "float32"}
    assert copy.layers[-1].compute_dtype == "float32" and copy.output.dtype == "float32"
    assert {v.dtype for v in copy.variables} == {"float32"}
    names = [v.path for v in upper.trainable_variables]
    assert names == [v.path for v in copy.trainable_variables]
    rng = np.random.default_rng(0)
    x = rng.random((8, *upper.input_shape[1:]), np.float32)
    y = np.eye(3, dtype=np.float32)[rng.integers(3, size=8)]
    np.testing.assert_allclose(copy(x), upper(x), atol=0.02)
    before = upper.get_weights()
    changes = [
        [after - first for after, first in zip(trained(model, x, y), before, strict=True)]
        for model in (upper, copy)
    ]
    for one, other in zip(*changes, strict=True):
        assert np.abs(one - other).max() <= 0.1 * np.abs(one).max() + 1e-6


def test_in_float32_a_copy_has_the_same_layers(upper):
    copy = in_precision(upper, "float32")
    assert [type(layer) for layer in copy.layers] == [type(layer) for layer in upper.layers]
    x = np.random.default_rng(0).random((2, *upper.input_shape[1:]), np.float32)
    np.testing.assert_array_equal(copy(x), upper(x))
