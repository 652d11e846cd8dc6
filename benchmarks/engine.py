"""The frozen part by Keras and by OpenVINO: images a second in float32 and bfloat16."""

import os
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from harness import DATASET, PRECISIONS, in_turn, measure, save, span, start

from fruitveg_tl.data import registry
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import BACKBONES, Backbone
from fruitveg_tl.models.network import build_network
from fruitveg_tl.training.inference import KERAS, OPENVINO, Inference, in_precision

SIZE, COUNT, ROUNDS = 224, 96, 3


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


def main() -> None:
    """Measure the backbones one after the other and store the table."""
    save(Path(__file__).stem, [row for name in BACKBONES for row in measure(rates, name)["found"]])


if __name__ == "__main__":
    start(main, rates)
