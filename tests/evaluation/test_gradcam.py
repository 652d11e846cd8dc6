import keras
import numpy as np
import pytest

from fruitveg_tl.evaluation.gradcam import gradcam
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network


@pytest.mark.parametrize("key", BACKBONES)
def test_is_what_the_gradient_gives(key):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the reference is computed with TensorFlow's GradientTape")
    import tensorflow as tf

    backbone, size, chosen = BACKBONES[key], 96, np.array([2, 0])
    keras.utils.set_random_seed(0)
    model = build_network(backbone, 3, size).model
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)

    reader = keras.Model(
        model.inputs, [model.get_layer(backbone.last_conv).output, model.get_layer("pooled").output]
    )
    head = model.get_layer("head")
    with tf.GradientTape() as tape:
        features, pooled = reader(pixels.astype(np.float32), training=False)
        logits = pooled @ head.kernel + head.bias
        score = tf.reduce_sum(tf.gather(logits, chosen, batch_dims=1))
    slopes = tape.gradient(score, features).numpy().mean((1, 2), keepdims=True)
    expected = np.maximum((slopes * features.numpy()).sum(-1), 0)
    expected /= expected.max((1, 2), keepdims=True)
    expected = np.asarray(keras.ops.image.resize(expected[..., None], (size, size)))[..., 0]

    found = gradcam(model, backbone, pixels, chosen)
    assert found.shape == (2, size, size) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_nothing_speaks_for_the_class():
    backbone = BACKBONES["vgg16"]
    model = build_network(backbone, 2, 32).model
    head = model.get_layer("head")
    head.set_weights([-np.ones_like(head.kernel), np.zeros(2)])
    pixels = np.full((1, 32, 32, 3), 200, np.uint8)
    assert not gradcam(model, backbone, pixels, np.array([0])).any()
