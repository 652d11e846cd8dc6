"""The frozen part by Keras and by OpenVINO: images a second, and what bfloat16 costs in accuracy.

Accuracy is a linear probe's on pooled features of the training and validation images, three-fold
cross-validated with three seeds of the folds: bfloat16 may not move it by more than the seeds do.
The test split is not read.
"""

import os
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from harness import DATASET, PRECISIONS, in_turn, measure, save, span, start
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fruitveg_tl.data import registry
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import BACKBONES, Backbone
from fruitveg_tl.models.network import build_network
from fruitveg_tl.training.inference import KERAS, OPENVINO, Inference, in_precision

SIZE, COUNT, ROUNDS, SEEDS = 224, 96, 3, 3


def inference(backbone: Backbone, engine: str, precision: str) -> Inference:
    """Return the frozen part by one engine in one precision."""
    os.environ["FRUITVEG_ENGINE"] = engine
    frozen = build_network(backbone, 2, SIZE, weights.resolve(backbone).values).frozen
    # OpenVINO rounds by itself.
    return Inference(in_precision(frozen, precision) if engine == KERAS else frozen, precision)


def rates(name: str) -> list[dict[str, str]]:
    """Measure both engines in both precisions, in turn, so that a disturbance meets all."""
    backbone, pixels = BACKBONES[name], registry.load(DATASET).pixels(SIZE)[:COUNT]
    cases = [(engine, precision) for engine in (KERAS, OPENVINO) for precision in PRECISIONS]
    ready = {case: inference(backbone, *case) for case in cases}
    output = {}

    def predict(case: tuple[str, str]) -> None:
        output[case] = ready[case].predict(pixels)

    seconds = in_turn({case: partial(predict, case) for case in cases}, ROUNDS)
    exact = output[KERAS, "float32"]
    rows = []
    for case in cases:
        measured = [len(pixels) / one for one in seconds[case]]
        difference = np.abs(output[case] - exact).mean() / np.abs(exact).mean()
        rows.append(
            {
                "Backbone": backbone.name,
                "Engine": case[0],
                "Precision": case[1],
                "Images a second": f"{median(measured):.1f}",
                "Lowest to highest": span(measured, ".1f"),
                "Mean relative difference": f"{difference:.4f}",
            }
        )
    return rows


def probe(name: str, precision: str) -> dict[str, str]:
    """Score a linear probe on features whose frozen part OpenVINO computes in one precision."""
    backbone, dataset = BACKBONES[name], registry.load(DATASET)
    rows = np.concatenate([dataset.rows("train"), dataset.rows("val")])
    pixels, targets = dataset.pixels(SIZE)[rows], dataset.targets[rows]
    features = inference(backbone, OPENVINO, precision).predict(pixels).astype(np.float16)
    network = build_network(backbone, 2, SIZE, weights.resolve(backbone).values)
    pooled = Inference(network.pool, precision).predict(features)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    scores = [
        cross_val_score(model, pooled, targets, cv=StratifiedKFold(3, shuffle=True, random_state=s))
        for s in range(SEEDS)
    ]
    means = [one.mean() for one in scores]
    return {
        "Backbone": backbone.name,
        "Weights": weights.resolve(backbone).source,
        "Precision": precision,
        "Accuracy": f"{np.mean(means):.4f}",
        "Range over the seeds": span(means, ".4f"),
        "Images": f"{len(targets)} of {DATASET}, {SIZE} px",
    }


def main() -> None:
    """Measure speed, then accuracy, and store both tables."""
    save(Path(__file__).stem, [row for name in BACKBONES for row in measure(rates, name)["found"]])
    probes = [measure(probe, name, p)["found"] for name in BACKBONES for p in PRECISIONS]
    save("engine_accuracy", probes)


if __name__ == "__main__":
    start(main, rates, probe)
