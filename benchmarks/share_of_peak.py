"""Share of peak: useful arithmetic a second over the machine's matrix-product rate.

Useful arithmetic is counted from the layers' shapes (`cost.multiplications`). The peak is the rate
of a large matrix product in the same precision by Keras' backend, measured in turn with the
networks; an engine with better kernels can pass it. Any backend of Keras, on a graphics card where
there is one: `KERAS_BACKEND=jax`.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from harness import PRECISIONS, in_turn, measure, save, span, start

ROUNDS = 5
SIZE, BATCH, CLASSES = 224, 32, 34
PHASES = FROZEN, TRAINING = "frozen part", "training step"


def rates(backbone: str) -> list[dict]:
    """Measure both phases, engines and precisions of one backbone, in turn with the product."""
    from fruitveg_tl.training.inference import engine

    works = {(None, "keras", precision): _product(precision) for precision in PRECISIONS}
    for precision in PRECISIONS:
        works[FROZEN, engine(), precision] = frozen_part(backbone, engine(), precision)
        works[TRAINING, "keras", precision] = training_step(backbone, precision)
    seconds = in_turn({key: call for key, (call, _) in works.items()}, ROUNDS)
    speed = {key: work[1] / median(seconds[key]) for key, work in works.items()}
    return [
        {
            "Phase": phase,
            "Backbone": backbone,
            "Engine": engine,
            "Precision": precision,
            "Images a second": f"{BATCH / median(seconds[phase, engine, precision]):.1f}",
            "Lowest to highest": span(
                (BATCH / one for one in seconds[phase, engine, precision]), ".1f"
            ),
            "GFLOP each": f"{works[phase, engine, precision][1] / BATCH / 1e9:.2f}",
            "GFLOP/s": f"{speed[phase, engine, precision] / 1e9:.0f}",
            "Matrix product GFLOP/s": f"{speed[None, 'keras', precision] / 1e9:.0f}",
            "Share": f"{speed[phase, engine, precision] / speed[None, 'keras', precision]:.0%}",
        }
        for phase, engine, precision in works
        if phase
    ]


def frozen_part(backbone: str, engine: str, precision: str) -> tuple[Callable, float]:
    """Return a call of the frozen part on one batch, and its operations, two a multiplication."""
    from fruitveg_tl.evaluation.cost import multiplications
    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.models.network import build_network
    from fruitveg_tl.training.inference import Inference, in_precision

    frozen = build_network(BACKBONES[backbone], CLASSES, SIZE).frozen
    model = in_precision(frozen, precision) if engine == "keras" else frozen
    inference = Inference(model, precision)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return lambda: inference.predict(pixels), 2.0 * BATCH * multiplications(frozen)


def training_step(backbone: str, precision: str) -> tuple[Callable, float]:
    """Return a training step of the upper part on one batch, and its operations.

    Three times those of the upper part: forward, gradient by the input, gradient by the weights.
    """
    import keras

    from fruitveg_tl.evaluation.cost import multiplications
    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.models.network import build_network, unfreeze
    from fruitveg_tl.training.inference import in_precision

    upper = build_network(BACKBONES[backbone], CLASSES, SIZE).upper
    unfreeze(upper)
    fast = in_precision(upper, precision)
    fast.compile(keras.optimizers.AdamW(1e-5), "categorical_crossentropy")
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, *upper.input_shape[1:]), np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=BATCH)]
    return lambda: fast.train_on_batch(x, y), 6.0 * BATCH * multiplications(upper)


def _product(precision: str) -> tuple[Callable, float]:
    """Return a product of two large matrices, and its operations."""
    import keras

    from fruitveg_tl.utils import runtime

    side = 16_384 if runtime.gpus() else 4096
    dtype = precision.removeprefix("mixed_")
    a = keras.ops.cast(keras.random.normal((side, side), seed=0), dtype)
    # What is brought back, so that the clock stops after the product, is one number.
    return lambda: float(keras.ops.sum(keras.ops.matmul(a, a))), 2.0 * side**3


def main() -> None:
    """Measure the backbones one after the other and store the table."""
    from fruitveg_tl.models.backbones import BACKBONES

    rows = [row for name in BACKBONES for row in measure(rates, name)["found"]]
    save(Path(__file__).stem, sorted(rows, key=lambda row: PHASES.index(row["Phase"])))


if __name__ == "__main__":
    start(main, rates)
