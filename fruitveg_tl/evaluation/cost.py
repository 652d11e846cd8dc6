"""Cost of inference: parameters, arithmetic, bytes, time."""

import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.studies import Run

if TYPE_CHECKING:
    import keras

REPEATS = 30


def cost(run: Run) -> pd.Series:
    """Return the cost of one prediction, from the study's `costs.csv` or measured now.

    It has parameters, megabytes (as float32), gigaflops (per image; a multiply-add counts as two),
    latency_ms (median over `REPEATS` single images) and machine.
    """
    file, key = run.folder / "costs.csv", run.row["backbone"]
    known = pd.read_csv(file, index_col=["backbone", "size"]) if file.exists() else pd.DataFrame()
    if (key, run.config.size) in known.index:
        return known.loc[key, run.config.size]
    from fruitveg_tl.models.network import build_network
    from fruitveg_tl.utils import runtime

    model = build_network(BACKBONES[key], len(run.classes), run.config.size).model
    environment = runtime.environment()
    cards = ", ".join(environment["gpus"]) or "no graphics card"
    return pd.Series(
        {
            "parameters": model.count_params(),
            "megabytes": 4 * model.count_params() / 1e6,
            "gigaflops": 2 * multiplications(model) / 1e9,
            "latency_ms": _latency(model),
            "machine": f"{environment['cpu']}, {environment['cores']} cores, {cards}",
        }
    )


def multiplications(model: "keras.Model") -> int:
    """Count the multiply-adds of convolutions and dense layers for one input.

    The other layers of the registered backbones add less than one percent.
    """
    from fruitveg_tl.utils.backend import keras

    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            height, width, channels = layer.output.shape[1:]
            total += height * width * channels * int(np.prod(layer.kernel_size))
        elif isinstance(layer, keras.layers.Conv2D):
            height, width, _ = layer.output.shape[1:]
            total += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            total += int(np.prod(layer.kernel.shape))
    return total


def _latency(model: "keras.Model") -> float:
    image = np.zeros((1, *model.input_shape[1:]), np.float32)
    times = []
    for _ in range(REPEATS + 3):
        start = time.perf_counter()
        model.predict_on_batch(image)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[3:]))  # the first calls compile
