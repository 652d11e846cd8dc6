import keras
import numpy as np
import pytest

from fruitveg_tl.evaluation import faithfulness
from fruitveg_tl.evaluation.gradcam import gradcam
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network

BACKBONE, SIZE = BACKBONES["vgg16"], 64


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_network(BACKBONE, 3, SIZE).model


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def test_forgetting_goes_from_the_end_to_the_beginning_and_spares_the_network_itself(model):
    before = model.get_weights()
    changed = {}
    for name, network in faithfulness.randomised(model, BACKBONE):
        pairs = zip(model.layers, network.layers, strict=True)
        changed[name] = {
            own.name
            for own, other in pairs
            for a, b in zip(own.get_weights(), other.get_weights(), strict=True)
            if not np.array_equal(a, b)
        }
        for a, b in zip(before, network.get_weights(), strict=True):
            np.testing.assert_allclose(np.sort(a.ravel()), np.sort(b.ravel()))
    last = {f"block5_conv{i}" for i in (1, 2, 3)}
    assert list(changed) == ["nothing", "head", "fine-tuned layers", "everything"]
    assert changed["nothing"] == set() and changed["head"] == {"head"}
    assert changed["fine-tuned layers"] == {"head"} | last
    assert changed["everything"] > {"head", "block1_conv1", "block4_conv3"} | last
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_maps_agree_with_themselves_and_less_once_the_head_is_forgotten(model, pixels):
    found = faithfulness.sanity(model, BACKBONE, pixels, np.array([0, 1, 2]))
    assert found["nothing"] == pytest.approx(1)
    assert max(value for name, value in found.items() if name != "nothing") < 0.95


def test_a_map_without_ranks_agrees_with_nothing(pixels):
    flat, slope = np.zeros((1, 4, 4)), np.arange(16.0).reshape(1, 4, 4)
    assert faithfulness._correlation(flat, slope) == 0
    assert faithfulness._correlation(slope, -slope) == pytest.approx(-1)


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
    probabilities = faithfulness.deletion(camera, pixels, maps, fractions=(0, 0.5, 1))
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
    control = faithfulness.random_maps(3, 4, SIZE)
    assert control.shape == maps.shape and control.min() >= 0 and control.max() <= 1
    marked = faithfulness.deletion(model, pixels, maps)[..., 0].mean(1)
    random = faithfulness.deletion(model, pixels, control)[..., 0].mean(1)
    assert marked[0] == random[0] > 0.9 and marked[3] < 0.1 < random[3]


def test_gradcam_of_a_forgetful_network_is_still_a_map(model, pixels):
    *_, (name, network) = faithfulness.randomised(model, BACKBONE)
    found = gradcam(network, BACKBONE, pixels, np.zeros(3, int))
    assert name == "everything" and np.isfinite(found).all() and found.max() <= 1
