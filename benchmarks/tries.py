"""What else could make ResNet50's fine-tuning faster: each change alone, beside the step of a run.

Two thirds of its whole run are fine-tuning (`end_to_end.py`), and it is the network that stays
behind its goal. All steps are measured in turn in one process.
"""

from pathlib import Path
from statistics import median

from harness import in_turn, measure, save, span, start, stored

ROUNDS = 6
BACKBONE, LATER = "resnet50", "conv5_block1_out"


def steps() -> list[dict]:
    """Measure a training step with each change, per image."""
    from networks import BATCH, training_step, usual_precision

    usual_step = {"precision": usual_precision(BACKBONE), "batch": BATCH}
    changes = {
        "as in a run": {},
        "batches of half the size": {"batch": BATCH // 2},
        "batches of twice the size": {"batch": BATCH * 2},
        "boundary one block later": {"boundary": LATER},
        "float32": {"precision": "float32"},
        "convolutions of 1 × 1 as convolutions": {"products": False},
    }
    settings = {name: usual_step | change for name, change in changes.items()}
    calls = {name: training_step(BACKBONE, **own)[0] for name, own in settings.items()}
    seconds = in_turn(calls, ROUNDS)
    each = {n: [1000 * one / settings[n]["batch"] for one in seconds[n]] for n in settings}
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
