import keras
import numpy as np
import pytest

from fruitveg_tl.evaluation.explanations import deletion, gradcam
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network

SIZE = 64


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


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


def test_deletion_begins_with_the_image_and_blurs_the_highest_places_first(pixels):
    class Camera:
        """A network that keeps what it is shown."""

        def __init__(self):
            self.seen = []

        def predict(self, images, verbose):
            self.seen.append(images.copy())
            return np.full((len(images), 2), 0.5)

    maps = np.zeros((3, SIZE, SIZE))
    maps[:, :, : SIZE // 2] = 1
    camera = Camera()
    probabilities = deletion(camera, pixels, maps, fractions=(0, 0.5, 1))
    untouched, half, everything = camera.seen
    assert probabilities.shape == (3, 3, 2)
    np.testing.assert_array_equal(untouched, pixels)
    np.testing.assert_array_equal(half[:, :, SIZE // 2 :], pixels[:, :, SIZE // 2 :])
    np.testing.assert_array_equal(half[:, :, : SIZE // 2], everything[:, :, : SIZE // 2])
    assert everything.std() < 0.5 * untouched.std()


def test_what_the_map_marks_matters_more_than_the_control(pixels):
    """A network that looks at one corner: deleting there must cost it most."""
    inputs = keras.Input((SIZE, SIZE, 3))
    corner = keras.ops.std(inputs[:, :16, :16], axis=(1, 2, 3))
    score = keras.ops.stack([corner, 30 + 0 * corner], axis=1)
    model = keras.Model(inputs, keras.ops.softmax(score))
    maps = np.zeros((3, SIZE, SIZE))
    maps[:, :16, :16] = 1
    control = np.zeros((3, SIZE, SIZE))
    control[:, 32:48, 32:48] = 1
    marked, other = (deletion(model, pixels, x, (0, 0.1))[..., 0].mean(1) for x in (maps, control))
    assert marked[0] == other[0] > 0.9 and marked[1] < 0.1 < other[1]
