"""The recipe for the bundled weights needs PyTorch, which the project itself does not."""

import sys

import keras
import numpy as np
import pytest
from conftest import PROJECT

from fruitveg_tl.models.backbones import BACKBONES

torch = pytest.importorskip("torch", reason="no PyTorch here; «pip install torch==2.13.0»")
sys.path.insert(0, str(PROJECT / "data" / "weights" / "pretraining"))
twins = pytest.importorskip("twin")


def probabilities(twin, images, name):
    with torch.no_grad():
        (found,) = twin.eval()(torch.from_numpy(images).permute(0, 3, 1, 2), [name])
    return found.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("side", [64, 75])  # an odd side shows the padding
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_the_twin_predicts_as_keras_does_before_and_after_training(backbone, side):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    model = backbone.constructor(weights=None, include_top=False)
    values = [v + rng.uniform(0, 0.1, v.shape) * (v.ndim == 1) for v in model.get_weights()]
    model.set_weights(values)  # no bias is 0 any more
    twin, last = twins.Twin(model), model.layers[-1].name
    before = model(images, training=False)
    np.testing.assert_allclose(probabilities(twin, images, last), before, atol=1e-4)
    twin = twins.Twin(model, normalised=True)
    np.testing.assert_allclose(probabilities(twin, images, last), before, atol=1e-4)
    for norm in (part for part in twin.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
    twin.hand_back(model)
    after = model(images, training=False)
    np.testing.assert_allclose(probabilities(twin, images, last), after, atol=1e-4, rtol=1e-4)
    assert np.abs(after - before).max() > 0.01


def test_a_twin_with_estimated_statistics_predicts_in_training_as_keras_does():
    images = np.random.default_rng(0).normal(50, 20, (8, 64, 64, 3)).astype(np.float32)
    model = BACKBONES["vgg16"].constructor(weights=None, include_top=False)
    model.set_weights([v + 0.01 * (v.ndim == 1) for v in model.get_weights()])
    twin, last = twins.Twin(model, normalised=True), model.layers[-1].name
    wanted = np.asarray(model(images, training=False))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    twin.estimate_batch_norm_statistics(pixels)
    with torch.no_grad():
        (found,) = twin.train()(pixels, [last])
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), wanted, rtol=1e-3, atol=1e-3)
    assert np.ptp(wanted) > 0.1
    twin.hand_back(model)
    np.testing.assert_allclose(probabilities(twin, images, last), wanted, rtol=1e-3, atol=1e-3)


def test_a_layer_without_a_twin_is_refused():
    pixels = keras.Input((8, 8, 3))
    with pytest.raises(TypeError, match="no twin"):
        twins.Twin(keras.Model(pixels, keras.layers.LayerNormalization()(pixels)))
