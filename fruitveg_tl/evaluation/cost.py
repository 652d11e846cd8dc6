"""What a network costs when it is used: parameters, arithmetic, bytes, time."""

import json
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network
from fruitveg_tl.results import Run
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.storage import write_json

REPEATS = 30
LABELS = {
    "parameters": "parameters (millions)",
    "gigaflops": "arithmetic (GFLOP per image)",
    "megabytes": "size (MB)",
    "latency": "latency (ms per image)",
    "training": "training time (s)",
}


def cost(run: Run) -> dict:
    """Return what one prediction of a run's network costs.

    Measured once, on this machine or an earlier one that the result names.

    Nothing of it depends on the values of the weights, so a network of the same shape is built
    and measured; the result stays in the run's folder as `cost.json`.

    Returns:
        parameters; megabytes (of them as float32); gigaflops (per image, a multiplication
        and an addition counted as two); latency_ms (median over `REPEATS` single images);
        environment (see `runtime.environment`).
    """
    file = run.folder / "cost.json"
    if not file.exists():
        backbone, size = BACKBONES[run.config.backbone], run.config.size
        model = build_network(backbone, len(run.classes), size).model
        content = {
            "parameters": model.count_params(),
            "megabytes": 4 * model.count_params() / 1e6,
            "gigaflops": 2 * multiplications(model) / 1e9,
            "latency_ms": _latency(model),
            "environment": runtime.environment(),
        }
        write_json(file, content)
    return json.loads(file.read_text())


def accuracy_and_costs(every: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return one row per network: name, accuracy (mean over its runs) and the keys of `LABELS`.

    Args:
        every: name to the runs of one network, a seed each; the first one's costs are told.
    """
    rows = []
    for name, runs in every.items():
        spent = cost(runs[0])
        rows.append(
            {
                "name": name,
                "accuracy": np.mean([run.scores[FINETUNED]["accuracy"] for run in runs]),
                "parameters": spent["parameters"] / 1e6,
                "gigaflops": spent["gigaflops"],
                "megabytes": spent["megabytes"],
                "latency": spent["latency_ms"],
                "training": runs[0].training_seconds,
            }
        )
    return pd.DataFrame(rows)


def multiplications(model: keras.Model) -> int:
    """Count the multiply-add operations of convolutions and dense layers for one input.

    The rest (BatchNorm, activations, pooling) is below one percent of it in the backbones here.
    """
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


def _latency(model: keras.Model) -> float:
    image = np.zeros((1, *model.input_shape[1:]), np.float32)
    times = []
    for _ in range(REPEATS + 3):
        start = time.perf_counter()
        model.predict_on_batch(image)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[3:]))  # the first calls compile
