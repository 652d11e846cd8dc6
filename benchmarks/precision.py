"""What bfloat16 costs in accuracy and saves in time, in a whole run.

Only the accuracy is meant to be read where the processor has no bfloat16 instructions: there it
is emulated, and slow. `runtime.fast_precision` then keeps float32.
"""

from itertools import product
from pathlib import Path

from harness import DATASET, PRECISIONS, measure, save, start


def train(backbone: str, precision: str) -> list[dict]:
    """Train in one precision; return one row a stage."""
    from fruitveg_tl import results
    from fruitveg_tl.config import RunConfig
    from fruitveg_tl.run import train_and_evaluate

    train_and_evaluate(
        RunConfig(DATASET, backbone, size=96, views=1, finetune_epochs=5), precision=precision
    )
    return [
        {
            "Dataset": run["dataset"],
            "Model": run["model"],
            "Weights": run["weights"],
            "Precision": precision,
            "Stage": run["stage"],
            "Accuracy": f"{run['accuracy']:.4f}",
            "Loss": f"{run['loss']:.4f}",
            "F1": f"{run['f1_macro']:.4f}",
            "Seconds to there": f"{run['seconds']:.0f}",
        }
        for _, run in results.read().iterrows()
    ]


def main() -> None:
    """Run the same training in both precisions, where runs may differ, and store the table."""
    from fruitveg_tl.models.backbones import BACKBONES

    gaining = [name for name, backbone in BACKBONES.items() if backbone.bfloat16]
    cases = product(gaining, PRECISIONS)
    save(Path(__file__).stem, [row for case in cases for row in measure(train, *case)["found"]])


if __name__ == "__main__":
    start(main, train)
