"""End to end: the usual transfer-learning recipe, in Keras and in PyTorch, against this package.

All train on the whole training split, to the same schedule: so many epochs of the head, so many of
fine-tuning, no early stopping, then the test split. An epoch of a recipe costs the same every time:
two of each phase are measured, and the second stands for the others. This package runs the whole
schedule. Every side is a process of its own, and its time starts with
the process. What is measured is stored at once, and not repeated on the same kind of machine:
delete its entry in `results/end_to_end-runs.json` for that.

PyTorch is installed for this script alone, in `.venv-torch`; see the Makefile.
"""

import json
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from harness import DATASET, HERE, link_images, machine, measure, save, start, train

SIZE, VIEWS = 224, 4
EPOCHS = {"head": 30, "fine-tuning": 15}
MEASURED = 2
STAGES = ("linear probe", "fine-tuned")
BACKBONES = ("vgg16", "resnet50", "mobilenetv2")
TORCH = HERE.parent / ".venv-torch" / "bin" / "python"
KERAS_RECIPE, PYTORCH_RECIPE = "recipe in Keras", "recipe in PyTorch"
PACKAGE = "this package"
SIDES = (KERAS_RECIPE, PYTORCH_RECIPE, PACKAGE)


def package(root: str, backbone: str) -> dict:
    """Train as this package does, without early stopping."""
    run = train(
        root,
        backbone,
        size=SIZE,
        views=VIEWS,
        probe_epochs=EPOCHS["head"],
        finetune_epochs=EPOCHS["fine-tuning"],
        patience=max(EPOCHS.values()),
    )
    accuracy = {stage: scores["accuracy"] for stage, scores in run.scores.items()}
    seconds = run.seconds | {"evaluation": float(run.row["evaluation seconds"])}
    return {"accuracy": accuracy, "seconds": seconds, "weights": run.weights}


def main() -> None:
    """Measure each side of each backbone that is not measured yet, and store both tables."""
    from fruitveg_tl.utils import runtime
    from fruitveg_tl.utils.storage import write_json

    store = HERE / "results" / f"{Path(__file__).stem}-runs.json"
    runs = json.loads(store.read_text()) if store.exists() else []
    here = machine(runtime.environment())
    with tempfile.TemporaryDirectory() as root:
        link_images(Path(root), _images())
        for backbone, side in product(BACKBONES, SIDES):
            asked = {"backbone": backbone, "by": side, "machine": here}
            if any(asked.items() <= run.items() for run in runs):
                continue
            runs.append(asked | _measured(side, root, backbone) | {"commit": runtime.commit()[:9]})
            write_json(store, runs)
            print(runs[-1], flush=True)
    measured = {(run["backbone"], run["by"]): run for run in runs if run["machine"] == here}
    save(Path(__file__).stem, [_row(measured, *which) for which in product(BACKBONES, SIDES)])
    shares = [{"Backbone": name} | _shares(measured[name, PACKAGE]) for name in BACKBONES]
    save("end_to_end_shares", shares)


def _measured(side: str, root: str, backbone: str) -> dict:
    if side == PYTORCH_RECIPE:
        script = str(HERE / "recipe_pytorch.py")
        return measure("train", root, backbone, MEASURED, script=script, python=str(TORCH))
    if side == KERAS_RECIPE:
        script = str(HERE / "recipe_keras.py")
        return measure("train", root, backbone, MEASURED, script=script)
    return measure(package, root, backbone)


def _row(runs: dict, backbone: str, side: str) -> dict[str, str]:
    seconds = {by: _whole_seconds(runs[backbone, by]) for by in SIDES}
    run = runs[backbone, side]
    accuracy = run["found"].get("accuracy", {})
    return {
        "Backbone": backbone,
        "By": side,
        "Seconds": f"{seconds[side]:,.0f}",
        "Keras / this": f"{seconds[KERAS_RECIPE] / seconds[side]:.1f}",
        "PyTorch / this": f"{seconds[PYTORCH_RECIPE] / seconds[side]:.1f}",
        "Peak GiB": f"{run['GiB']:.1f}",
        **{f"Accuracy, {stage}": f"{accuracy[stage]:.3f}" if accuracy else "" for stage in STAGES},
        "Epochs (s)": _epochs(run["found"]),
        "Commit": run["commit"],
    }


def _images() -> Iterator[tuple[str, str, Path]]:
    """Give all images of the classes that every split has."""
    from fruitveg_tl.data import registry

    dataset = registry.load(DATASET)
    everywhere = dataset.index.groupby("label")["split"].transform("nunique") == 3
    for image in dataset.index[everywhere].itertuples():
        split = {"val": "validation"}.get(image.split, image.split)
        yield split, image.label, dataset.root / image.path


def _whole_seconds(run: dict) -> float:
    """Return the seconds of the whole schedule: each further epoch takes as long as the second."""
    further = sum(
        (count - MEASURED) * run["found"][phase][1]
        for phase, count in EPOCHS.items()
        if phase in run["found"]
    )
    return run["seconds"] + further


def _epochs(found: dict) -> str:
    """Write a recipe's measured epochs, e.g. "head 31.2, 30.9; fine-tuning 50.1, 49.8"."""
    return "; ".join(
        f"{phase} " + ", ".join(f"{one:.1f}" for one in found[phase])
        for phase in EPOCHS
        if phase in found
    )


def _shares(measured: dict) -> dict[str, str]:
    """Say what this package's time goes into."""
    parts = dict(measured["found"]["seconds"])
    parts["imports, decoding, graphs, saving"] = measured["seconds"] - sum(parts.values())
    return {name: f"{part:.0f} s" for name, part in parts.items()}


if __name__ == "__main__":
    start(main, package)
