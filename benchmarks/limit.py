"""How far from the limit: useful arithmetic a second over the machine's matrix-product rate.

Useful arithmetic is counted from the layers' shapes (`costs.multiplications`, two operations each),
three times that for a training step (forward, gradient by input, gradient by weights). The limit
is the rate of a large matrix product in the same precision, measured in turn with the networks.
How long training waits for its batches is measured in the loop that a run goes through. Where the
rest goes comes from oneDNN's own log of what it executed, with times
(ONEDNN_VERBOSE=profile_exec), of one more process: TensorFlow on a processor alone.

Any backend of Keras, on a graphics card where there is one: `KERAS_BACKEND=jax`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import keras
import numpy as np
from record import save, span

from fruitveg_tl.config import RunConfig
from fruitveg_tl.evaluation.cost import multiplications
from fruitveg_tl.models import backbones
from fruitveg_tl.models.network import Network, build_network
from fruitveg_tl.training.fit import Batches
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.storage import new_array

SIZE, BATCH, CLASSES, ROUNDS = 224, 32, 34, 5
SIDE = 16_384 if runtime.gpus() else 4096  # of the matrices
PHASES = FROZEN, TRAINING = "frozen part", "training step"
PRECISIONS = ("float32", "mixed_bfloat16")


def network(backbone: str, precision: str) -> Network:
    """Build a backbone in one precision with a head of its own."""
    with runtime.dtype_policy(precision):
        return build_network(backbones.BACKBONES[backbone], CLASSES, SIZE)


def frozen(backbone: str, precision: str) -> tuple[Callable, float]:
    """Return a call of the frozen part on one batch, and its operations."""
    prefix = network(backbone, precision).prefix
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return lambda: prefix.predict_on_batch(pixels), 2.0 * BATCH * multiplications(prefix)


def compiled_tail(backbone: str, precision: str) -> keras.Model:
    """Build what is trained."""
    tail = network(backbone, precision).tail
    tail.compile(keras.optimizers.AdamW(1e-5), "categorical_crossentropy")
    return tail


def training(backbone: str, precision: str) -> tuple[Callable, float]:
    """Return a training step of the tail on one batch, and its operations."""
    tail = compiled_tail(backbone, precision)
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, *tail.input_shape[1:]), np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=BATCH)]
    return lambda: tail.train_on_batch(x, y), 6.0 * BATCH * multiplications(tail)


def product(precision: str) -> tuple[Callable, float]:
    """Return a product of two large matrices, and its operations."""
    dtype = precision.removeprefix("mixed_")
    a = keras.ops.cast(keras.random.normal((SIDE, SIDE), seed=0), dtype)
    # What is brought back, so that the clock stops after the product, is one number.
    return lambda: float(keras.ops.sum(keras.ops.matmul(a, a))), 2.0 * SIDE**3


def main() -> None:
    """Measure every phase, backbone and precision in turn and store the tables."""
    works = {
        (phase, name, precision): make(name, precision)
        for phase, make in zip(PHASES, (frozen, training), strict=True)
        for name in backbones.BACKBONES
        for precision in PRECISIONS
    }
    works |= {("product", "", precision): product(precision) for precision in PRECISIONS}
    seconds = {key: [] for key in works}
    for turn in range(ROUNDS + 1):
        for key, (call, _) in works.items():
            start = time.perf_counter()
            call()
            if turn:  # the first one traces the graph
                seconds[key].append(time.perf_counter() - start)
    rates = {key: operations / median(seconds[key]) for key, (_, operations) in works.items()}
    rows = []
    for key in works:
        phase, name, precision = key
        if phase in PHASES:
            limit = rates["product", "", precision]
            rows.append(
                {
                    "Phase": phase,
                    "Backbone": backbones.BACKBONES[name].name,
                    "Precision": precision,
                    "Images a second": f"{BATCH / median(seconds[key]):.1f}",
                    "Spread": span((BATCH / one for one in seconds[key]), ".1f"),
                    "GFLOP each": f"{works[key][1] / BATCH / 1e9:.2f}",
                    "GFLOP/s": f"{rates[key] / 1e9:.0f}",
                    "Matrix product GFLOP/s": f"{limit / 1e9:.0f}",
                    "Share": f"{rates[key] / limit:.0%}",
                }
            )
    save(Path(__file__).stem, rows)
    save("waiting", [_waiting(name) for name in backbones.BACKBONES])
    if keras.backend.backend() == "tensorflow" and not runtime.gpus():
        save("profile", [_profile(phase, name) for phase in PHASES for name in backbones.BACKBONES])


def _waiting(backbone: str) -> dict[str, str]:
    """Return how long a training step takes and how long it waits for its batch.

    The batches are read from mapped files, blended and trained on one after the other, as in
    `fit.run_epoch`; the files lie in memory, as those just computed do.
    """
    tail = compiled_tail(backbone, _usual(backbone))
    count = BATCH * (ROUNDS + 1)
    rng = np.random.default_rng(0)
    reading, learning = [], []
    with tempfile.TemporaryDirectory() as folder:
        views = []
        for view in range(2):
            shape = (count, *tail.input_shape[1:])
            views.append(new_array(Path(folder) / f"{view}.npy", np.float16, shape))
            views[-1][:] = rng.random(shape, np.float32)
        labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=count)]
        pairs = [(view, np.arange(count)) for view in views]
        batches = Batches(pairs, labels, BATCH, rng, RunConfig.mixup)
        for index in range(len(batches)):
            start = time.perf_counter()
            batch = batches[index]
            there = time.perf_counter()
            tail.train_on_batch(*batch)
            reading.append(there - start)
            learning.append(time.perf_counter() - there)
    # The first step traces the graph.
    wait, step = median(reading[1:]), median(learning[1:])
    return {
        "Backbone": backbones.BACKBONES[backbone].name,
        "Precision": _usual(backbone),
        "Wait for a batch (ms)": f"{1000 * wait:.1f}",
        "Range": span((1000 * one for one in reading[1:]), ".1f"),
        "Learn from it (ms)": f"{1000 * step:.1f}",
        "Waiting, of the time": f"{wait / (wait + step):.1%}",
    }


def _profile(phase: str, backbone: str) -> dict[str, str]:
    """Return what a phase's time in oneDNN is spent on.

    TensorFlow runs independent operations of the backward pass side by side, so that their times
    can add up to more than the clock shows.
    """
    done = subprocess.run(
        [sys.executable, __file__, phase, backbone],
        env=os.environ | {"ONEDNN_VERBOSE": "profile_exec"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    lines = lines[lines.index("begin") + 1 :]
    spent: Counter[str] = Counter()
    for line in lines[:-1]:
        if match := re.match(r"onednn_verbose(?:,v\d)?(?:,[\d.]+)?(?:,primitive)?,exec,", line):
            fields = line[match.end() :].split(",")
            kind = fields[1]
            if kind == "convolution" and re.search(r"\bg\d+", fields[-2]):
                kind = "depthwise convolution"
            kind += " backwards" if fields[3].startswith("backward") else ""
            spent[kind] += float(fields[-1]) / 1000
    whole = json.loads(lines[-1])
    total = sum(spent.values())
    fractions = ", ".join(f"{kind} {part / total:.0%}" for kind, part in spent.most_common(4))
    return {
        "Phase": phase,
        "Backbone": backbones.BACKBONES[backbone].name,
        "Precision": _usual(backbone),
        "In oneDNN, of the time by the clock": f"{total / whole:.0%}",
        "Of that": fractions,
    }


def _usual(backbone: str) -> str:
    return runtime.fast_precision(backbones.BACKBONES[backbone].bfloat16)


def _profiled(phase: str, backbone: str) -> None:
    call, _ = {FROZEN: frozen, TRAINING: training}[phase](backbone, _usual(backbone))
    call()
    print("begin", flush=True)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _profiled(*sys.argv[1:])
    else:
        main()
