"""How long a training step waits for its batch, in the loop that a run goes through.

The batches are read from mapped files, blended and trained on one after the other, as in
`fit.run_epoch`; the files lie in memory, as those just computed do.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

from harness import measure, save, span, start

STEPS, VIEWS = 12, 2


def waiting(backbone: str) -> dict[str, str]:
    """Measure one backbone in the precision that a run takes."""
    import numpy as np
    from networks import BATCH, CLASSES, compiled_tail, usual_precision

    from fruitveg_tl.config import RunConfig
    from fruitveg_tl.training.fit import Batches
    from fruitveg_tl.utils.storage import new_array

    tail = compiled_tail(backbone, usual_precision(backbone))
    count, rng = BATCH * (STEPS + 1), np.random.default_rng(0)
    reading, training = [], []
    with tempfile.TemporaryDirectory() as folder:
        views = []
        for view in range(VIEWS):
            shape = (count, *tail.input_shape[1:])
            views.append(new_array(Path(folder) / f"{view}.npy", np.float16, shape))
            views[-1][:] = rng.random(shape, np.float32)
        labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=count)]
        batches = Batches(views, np.arange(count), labels, BATCH, rng, RunConfig.mixup)
        for index in range(len(batches)):
            begin = time.perf_counter()
            batch = batches[index]
            there = time.perf_counter()
            tail.train_on_batch(*batch)
            reading.append(there - begin)
            training.append(time.perf_counter() - there)
    wait, step = median(reading[1:]), median(training[1:])  # the first step traces the graph
    return {
        "Backbone": backbone,
        "Precision": usual_precision(backbone),
        "Wait for a batch (ms)": f"{1000 * wait:.1f}",
        "Lowest to highest": span((1000 * one for one in reading[1:]), ".1f"),
        "Train on it (ms)": f"{1000 * step:.1f}",
        "Waiting, of the time": f"{wait / (wait + step):.1%}",
    }


def main() -> None:
    """Measure the backbones one after the other and store the table."""
    from fruitveg_tl.models.backbones import BACKBONES

    save(Path(__file__).stem, [measure(waiting, name)["found"] for name in BACKBONES])


if __name__ == "__main__":
    start(main, waiting)
