"""What bfloat16 costs in accuracy and saves in time, on whatever FRUITVEG_DATA points at.

Only the accuracy is meant to be read where the processor has no bfloat16 instructions: there it
is emulated, and slow. `runtime.fast_precision` then keeps float32.
"""

import os
import tempfile
from itertools import product
from pathlib import Path

os.environ["FRUITVEG_HOME"] = tempfile.mkdtemp()  # before the package reads it

from record import save

from fruitveg_tl import results
from fruitveg_tl.config import RunConfig
from fruitveg_tl.models import backbones
from fruitveg_tl.run import train_and_evaluate

DATASET = "grocery" if "FRUITVEG_DATA" in os.environ else "synthetic"


def main() -> None:
    """Run the same study in both precisions and store the table."""
    rows = []
    gaining = [name for name, backbone in backbones.BACKBONES.items() if backbone.bfloat16]
    for backbone, precision in product(gaining, ("float32", "mixed_bfloat16")):
        config = RunConfig(DATASET, backbone, size=96, views=1, finetune_epochs=5)
        name = train_and_evaluate(config, precision=precision, force=True).name
        runs = results.read()
        for _, run in runs[runs["run"] == name].iterrows():
            rows.append(
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
            )
    save(Path(__file__).stem, rows)


if __name__ == "__main__":
    main()
