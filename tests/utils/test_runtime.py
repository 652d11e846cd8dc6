import keras
import pytest

from fruitveg_tl.utils import runtime


@pytest.mark.parametrize(
    ("backend", "flags", "gpus", "gains", "precision"),
    [
        ("tensorflow", "avx2 avx512_bf16", [], True, "mixed_bfloat16"),
        ("tensorflow", "avx2 avx512_bf16", [], False, "float32"),
        ("tensorflow", "avx2 avx512f", [], True, "float32"),
        ("jax", "avx2 avx512_bf16", [], True, "float32"),
        ("jax", "avx2", ["cuda:0"], False, "mixed_bfloat16"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(monkeypatch, backend, flags, gpus, gains, precision):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(runtime, "_cpuinfo", lambda field: flags)
    monkeypatch.setattr(runtime, "gpus", lambda: gpus)
    assert runtime.fast_precision(gains) == precision
