import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fruitveg_tl.models import quantisation

FINITE = st.floats(-100, 100, width=32)
SHAPES = st.tuples(*[st.integers(1, 3)] * 4)


@settings(max_examples=50, deadline=None)
@given(kernel=arrays(np.float32, SHAPES, elements=FINITE))
def test_a_kernel_is_off_by_half_a_step_of_its_channel_at_most(kernel, tmp_path_factory):
    file = tmp_path_factory.mktemp("quantised") / "a.npz"
    quantisation.save(file, [kernel])
    (found,) = quantisation.load(file)
    assert found.shape == kernel.shape and found.dtype == np.float32
    channels = (0, 1, 3) if kernel.shape[3] == 1 else (0, 1, 2)
    step = np.abs(kernel).max(channels, keepdims=True) / 127
    assert (np.abs(found - kernel) <= step * 0.501 + 1e-6).all()


def test_order_and_shapes_survive_and_the_file_is_small(tmp_path):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) for shape in ((3, 3, 64, 64), (64,), (3, 3, 64, 1), (64,)) * 3]
    quantisation.save(tmp_path / "a.npz", values)
    found = quantisation.load(tmp_path / "a.npz")
    for one, other in zip(values, found, strict=True):
        np.testing.assert_allclose(one, other, atol=0.03)
    assert (tmp_path / "a.npz").stat().st_size < 0.3 * sum(4 * value.size for value in values)


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float16"):
        quantisation.save(tmp_path / "a.npz", [np.array([1e6])])
    assert not list(tmp_path.iterdir())
