"""What else could make ResNet50's fine-tuning faster: each change alone, beside the step of a run.

Two thirds of its whole run are fine-tuning (`end_to_end.py`), and it is the network that stays
behind its goal. All steps are measured in turn in one process.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from harness import in_turn, measure, save, span, start, stored

ROUNDS = 6
BACKBONE, LATER = "resnet50", "conv5_block1_out"


def steps() -> list[dict]:
    """Measure a training step with each change, per image."""
    from networks import BATCH

    works = {
        "as in a run": _step(),
        "batches of half the size": _step(batch=BATCH // 2),
        "batches of twice the size": _step(batch=BATCH * 2),
        "boundary one block later": _step(boundary=LATER),
        "float32": _step(precision="float32"),
        "convolutions of 1 × 1 as convolutions": _step(products=False),
    }
    seconds = in_turn({name: call for name, (call, _) in works.items()}, ROUNDS)
    each = {name: [1000 * one / works[name][1] for one in seconds[name]] for name in works}
    usual = median(each["as in a run"])
    return [
        {
            "Training step": name,
            "Milliseconds an image": f"{median(found):.1f}",
            "Lowest to highest": span(found, ".1f"),
            "Times as fast": f"{usual / median(found):.2f}",
        }
        for name, found in each.items()
    ]


def _step(
    batch: int | None = None,
    boundary: str | None = None,
    precision: str | None = None,
    products: bool = True,
) -> tuple[Callable, int]:
    """Return a training step and its number of images; what is not given is as in a run."""
    from dataclasses import replace

    import keras
    import numpy as np
    from networks import BATCH, CLASSES, SIZE, usual_precision

    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.models.network import build_network
    from fruitveg_tl.training.pointwise import with_products
    from fruitveg_tl.utils import runtime

    backbone, batch = BACKBONES[BACKBONE], batch or BATCH
    with runtime.dtype_policy(precision or usual_precision(BACKBONE)):
        cut = replace(backbone, boundary=boundary or backbone.boundary)
        tail = build_network(cut, CLASSES, SIZE).tail
    tail = with_products(tail) if products else tail
    tail.compile(keras.optimizers.AdamW(1e-5), "categorical_crossentropy")
    rng = np.random.default_rng(0)
    x = rng.random((batch, *tail.input_shape[1:]), np.float32)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=batch)]
    return lambda: tail.train_on_batch(x, y), batch


def main() -> None:
    """Measure, say what that makes of the whole run of `end_to_end.py`, and store the table."""
    rows, keras, package = stored("end_to_end"), "recipe in Keras", "this package"
    whole = {
        row["By"]: float(row["Seconds"].replace(",", ""))
        for row in rows
        if row["Backbone"] == BACKBONE
    }
    (spent,) = (row for row in stored("end_to_end_shares") if row["Backbone"] == BACKBONE)
    tuning = float(spent["fine-tuned"].split()[0])
    found = measure(steps)["found"]
    for row in found:
        seconds = whole[package] - tuning + tuning / float(row["Times as fast"])
        row["Whole run by that, times as fast as the recipe in Keras"] = (
            f"{whole[keras] / seconds:.1f}"
        )
    save(Path(__file__).stem, found)


if __name__ == "__main__":
    start(main, steps)
