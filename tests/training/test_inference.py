"""Both engines give the same, in order, and hold few batches at a time."""

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import keras
import numpy as np
import pytest

from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network
from fruitveg_tl.training import inference
from fruitveg_tl.training.inference import KERAS, OPENVINO, Inference
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_network(BACKBONES["mobilenetv2"], 3, 32)


# Not `importorskip`: importing it here would load what the package keeps out.
needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="no OpenVINO here")


@pytest.fixture(params=[KERAS, pytest.param(OPENVINO, marks=needs_openvino)])
def each_engine(request, monkeypatch):
    if request.param == OPENVINO:
        monkeypatch.setenv("FRUITVEG_ENGINE", request.param)
    return request.param


def test_the_output_is_the_networks_own_in_order(network, each_engine):
    x = images(2 * inference.BATCH + 5)  # the last batch and its last request are smaller
    for model in (network.model, network.frozen):
        expected = model.predict(x.astype(np.float32), verbose=0)
        np.testing.assert_allclose(
            Inference(model).predict(x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
        )


@needs_openvino
def test_bfloat16_differs_little(network, monkeypatch):
    monkeypatch.setenv("FRUITVEG_ENGINE", OPENVINO)
    x = images(16)
    exact = Inference(network.frozen).predict(x)
    rounded = Inference(network.frozen, "mixed_bfloat16").predict(x)
    assert np.abs(rounded - exact).mean() < 0.1 * np.abs(exact).mean()


def test_no_more_than_two_batches_are_made_before_one_is_given(network, each_engine):
    made = []

    def batches():
        for number in range(5):
            made.append(number)
            yield images(3)

    for given, _ in enumerate(Inference(network.frozen).outputs(batches()), 1):
        assert len(made) <= given + 1
    assert len(made) == 5
    assert list(Inference(network.frozen).outputs(iter(()))) == []


@pytest.mark.reliability("requests from several threads, of wrong shapes among them")
def test_several_threads_each_get_their_own_answers(each_engine, tried):
    pixels = keras.Input((8, 8, 3))
    mean = Inference(keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels)))
    wrong = []

    def ask(thread):
        for number in range(100):
            value = 100 * thread + number
            if number % 10 == 0:
                with pytest.raises(ValueError, match=r"shape \(2, 9, 9, 3\); the network takes"):
                    mean.predict(np.zeros((2, 9, 9, 3)))
            answer = mean.predict(np.full((20, 8, 8, 3), value, np.float32))
            if answer.shape != (20, 3) or (answer != value).any():
                wrong.append(value)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert wrong == []
    tried(8 * 110)


def test_a_caller_who_stops_half_way_leaves_nothing_behind(network, each_engine):
    asked = Inference(network.frozen)
    first = asked.outputs(iter([images(3), images(4)]))
    next(first)
    second = asked.outputs(iter([images(5)]))
    assert len(next(second)) == 5 and len(next(first)) == 4


def test_the_engine_is_chosen_by_what_is_there(monkeypatch):
    monkeypatch.delenv("FRUITVEG_ENGINE", raising=False)
    monkeypatch.setattr(runtime, "gpus", list)
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: name)
    assert inference.engine() == OPENVINO
    monkeypatch.setattr(runtime, "gpus", lambda: ["a card"])
    assert inference.engine() == KERAS
    monkeypatch.setattr(runtime, "gpus", list)
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: None)
    assert inference.engine() == KERAS
    monkeypatch.setenv("FRUITVEG_ENGINE", OPENVINO)
    with pytest.raises(InputError, match="needs the package openvino"):
        inference.engine()
    monkeypatch.setenv("FRUITVEG_ENGINE", "abacus")
    with pytest.raises(InputError, match="FRUITVEG_ENGINE=abacus: choose openvino or keras"):
        inference.engine()


@needs_openvino
def test_nothing_is_reported_to_anybody(network, monkeypatch):
    monkeypatch.setenv("FRUITVEG_ENGINE", OPENVINO)
    Inference(network.frozen)
    assert sys.modules["openvino_telemetry"] is None
