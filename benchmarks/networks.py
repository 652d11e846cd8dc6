"""The two calls that the benchmarks of the arithmetic time: frozen part and training step."""

from collections.abc import Callable

import keras
import numpy as np

from fruitveg_tl.evaluation.cost import multiplications
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network, unfreeze
from fruitveg_tl.training.inference import Inference, in_precision

SIZE, BATCH, CLASSES = 224, 32, 34


def frozen_part(backbone: str, engine: str, precision: str) -> tuple[Callable, float]:
    """Return a call of the frozen part on one batch, and its operations, two a multiplication."""
    frozen = build_network(BACKBONES[backbone], CLASSES, SIZE).frozen
    model = in_precision(frozen, precision) if engine == "keras" else frozen
    inference = Inference(model, precision)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return lambda: inference.predict(pixels), 2.0 * BATCH * multiplications(frozen)


def training_step(backbone: str, precision: str) -> tuple[Callable, float]:
    """Return a training step of the upper part on one batch, and its operations.

    Three times those of the upper part: forward, gradient by the input, gradient by the weights.
    """
    upper = build_network(BACKBONES[backbone], CLASSES, SIZE).upper
    unfreeze(upper)
    fast = in_precision(upper, precision)
    fast.compile(keras.optimizers.AdamW(1e-5), "categorical_crossentropy")
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, *upper.input_shape[1:]), np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=BATCH)]
    return lambda: fast.train_on_batch(x, y), 6.0 * BATCH * multiplications(upper)
