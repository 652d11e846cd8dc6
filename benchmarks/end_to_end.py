"""End to end: the usual transfer-learning recipe, in Keras and in PyTorch, against this package.

All train on the whole training split, to the same schedule: so many epochs of the head, so many of
fine-tuning, no early stopping, then the test split. An epoch of a recipe costs the same every time:
two of each phase are measured, and the second stands for the others. This package runs the whole
schedule, with OpenVINO and without. Every side is a process of its own, and its time starts with
the process.

PyTorch is installed for this script alone, in `.venv-torch`; see the Makefile.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import DATASET, HERE, link_images, measure, save, start

SIZE, VIEWS = 224, 4
EPOCHS = {"head": 30, "fine-tuning": 15}
MEASURED = 2
BACKBONES = ("vgg16", "resnet50", "mobilenetv2")
TORCH = HERE.parent / ".venv-torch" / "bin" / "python"
KERAS_RECIPE, PYTORCH_RECIPE = "recipe in Keras", "recipe in PyTorch"
PACKAGE, WITHOUT = "this package", "this package, FRUITVEG_ENGINE=keras"


def package(root: str, backbone: str) -> dict:
    """Train as this package does, without early stopping."""
    from fruitveg_tl import results
    from fruitveg_tl.config import RunConfig
    from fruitveg_tl.run import train_and_evaluate

    config = RunConfig(
        root,
        backbone,
        size=SIZE,
        views=VIEWS,
        probe_epochs=EPOCHS["head"],
        finetune_epochs=EPOCHS["fine-tuning"],
        patience=max(EPOCHS.values()),
    )
    run = results.load(train_and_evaluate(config))
    accuracy = {stage: scores["accuracy"] for stage, scores in run.scores.items()}
    return {"accuracy": accuracy, "seconds": run.provenance["seconds"], "weights": run.weights}


def main() -> None:
    """Measure all sides of one backbone after the other and store both tables."""
    rows, shares = [], []
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as root:
            link_images(Path(root), _images())
            recipe = ("train", root, backbone, MEASURED)
            sides = {
                KERAS_RECIPE: measure(*recipe, script=str(HERE / "recipe_keras.py")),
                PYTORCH_RECIPE: measure(
                    *recipe, script=str(HERE / "recipe_pytorch.py"), python=str(TORCH)
                ),
                PACKAGE: measure(package, root, backbone),
                WITHOUT: measure(package, root, backbone, FRUITVEG_ENGINE="keras"),
            }
        seconds = {
            side: found["seconds"] if side in (PACKAGE, WITHOUT) else _extrapolated(found)
            for side, found in sides.items()
        }
        for side, found in sides.items():
            accuracy = found["found"].get("accuracy", {}).values()
            rows.append(
                {
                    "Backbone": backbone,
                    "By": side,
                    "Seconds": f"{seconds[side]:,.0f}",
                    "Keras / this": _ratio(seconds[KERAS_RECIPE], seconds[side]),
                    "PyTorch / this": _ratio(seconds[PYTORCH_RECIPE], seconds[side]),
                    "Peak GiB": f"{found['GiB']:.1f}",
                    "Accuracy": ", ".join(f"{value:.3f}" for value in accuracy) or "not trained",
                    "Epochs (s)": _epochs(found["found"]),
                }
            )
            print(rows[-1], flush=True)
        shares.append({"Backbone": backbone} | _shares(sides[PACKAGE]))
        print(shares[-1], flush=True)
    save(Path(__file__).stem, rows)
    save("end_to_end_shares", shares)


def _images() -> Iterator[tuple[str, str, Path]]:
    """Give all images of the classes that every split has."""
    from fruitveg_tl.data import registry

    dataset = registry.load(DATASET)
    everywhere = dataset.index.groupby("label")["split"].transform("nunique") == 3
    for image in dataset.index[everywhere].itertuples():
        split = {"val": "validation"}.get(image.split, image.split)
        yield split, image.label, dataset.root / image.path


def _extrapolated(measured: dict) -> float:
    """Return the seconds of the whole schedule: each further epoch takes as long as the second."""
    further = sum(
        (count - MEASURED) * measured["found"][phase][1] for phase, count in EPOCHS.items()
    )
    return measured["seconds"] + further


def _ratio(other: float, own: float) -> str:
    return f"{other / own:.1f}"


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
    parts.pop("this_call")
    parts["imports, graphs, saving"] = measured["seconds"] - sum(parts.values())
    return {name: f"{part:.0f} s" for name, part in parts.items()}


if __name__ == "__main__":
    start(main, package)
