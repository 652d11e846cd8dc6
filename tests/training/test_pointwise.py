"""Convolutions of 1 × 1 pixels as products: the same network, only faster."""

import keras
import numpy as np

from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network
from fruitveg_tl.training.pointwise import with_products
from fruitveg_tl.utils import runtime


def trained(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    model.compile(keras.optimizers.SGD(0.01), "categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(x, y)
    return model.get_weights()


def test_output_gradients_and_frozen_layers_are_the_same(monkeypatch):
    keras.utils.set_random_seed(0)
    with runtime.dtype_policy("mixed_bfloat16"):
        tail = build_network(BACKBONES["resnet50"], 3, 64).tail
    copy = with_products(tail)
    assert copy is not tail
    names = [v.name for v in tail.trainable_variables]
    assert names == [v.name for v in copy.trainable_variables]
    rng = np.random.default_rng(0)
    x = rng.random((8, *tail.input_shape[1:]), np.float32)
    y = np.eye(3, dtype=np.float32)[rng.integers(3, size=8)]
    np.testing.assert_allclose(copy(x), tail(x), atol=0.01)
    before = tail.get_weights()
    changes = [
        [after - first for after, first in zip(trained(model, x, y), before, strict=True)]
        for model in (tail, copy)
    ]
    for one, other in zip(*changes, strict=True):
        assert np.abs(one - other).max() <= 0.1 * np.abs(one).max() + 1e-6


def test_where_nothing_is_gained_the_model_itself_is_returned():
    for key, precision in (("resnet50", "float32"), ("vgg16", "mixed_bfloat16")):
        with runtime.dtype_policy(precision):
            tail = build_network(BACKBONES[key], 3, 32).tail
        assert with_products(tail) is tail
