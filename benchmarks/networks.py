"""The two calls that the benchmarks of the arithmetic time: frozen part and training step."""

from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np

from fruitveg_tl.evaluation.cost import multiplications
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import Network, build_network
from fruitveg_tl.training.inference import Inference
from fruitveg_tl.training.pointwise import with_products
from fruitveg_tl.utils import runtime

SIZE, BATCH, CLASSES = 224, 32, 34


def usual_precision(backbone: str) -> str:
    """Return the precision that a run trains this backbone in here."""
    return runtime.fast_precision(BACKBONES[backbone].bfloat16)


def frozen_part(backbone: str, engine: str, precision: str) -> tuple[Callable, float]:
    """Return a call of the frozen part on one batch, and its operations, two a multiplication."""
    network = _network(backbone, precision if engine == "keras" else "float32")
    inference = Inference(network.prefix, precision)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return lambda: inference.predict(pixels), 2.0 * BATCH * multiplications(network.prefix)


def training_step(
    backbone: str,
    precision: str,
    batch: int = BATCH,
    boundary: str | None = None,
    products: bool = True,
) -> tuple[Callable, float]:
    """Return a training step of the tail on one batch, and its operations.

    Three times those of the tail: forward, gradient by the input, gradient by the weights.
    `boundary` and `products` are by default as in a run.
    """
    tail = compiled_tail(backbone, precision, boundary, products)
    rng = np.random.default_rng(0)
    x = rng.random((batch, *tail.input_shape[1:]), np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=batch)]
    return lambda: tail.train_on_batch(x, y), 6.0 * batch * multiplications(tail)


def compiled_tail(
    backbone: str, precision: str, boundary: str | None = None, products: bool = True
) -> keras.Model:
    """Build what is trained."""
    tail = _network(backbone, precision, boundary).tail
    tail = with_products(tail) if products else tail
    tail.compile(keras.optimizers.AdamW(1e-5), "categorical_crossentropy")
    return tail


def _network(backbone: str, precision: str, boundary: str | None = None) -> Network:
    entry = BACKBONES[backbone]
    with runtime.dtype_policy(precision):
        return build_network(replace(entry, boundary=boundary or entry.boundary), CLASSES, SIZE)
