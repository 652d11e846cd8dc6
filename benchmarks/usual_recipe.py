"""End to end: the usual transfer-learning recipe against this package.

The usual recipe is the guide's (keras.io/guides/transfer_learning), written plainly:
`image_dataset_from_directory`, augmentation and preprocessing as layers, the frozen base called
with `training=False`, `fit` for the head, then the same layers unfrozen as here and `fit` at a low
rate. Same images, size, augmentation layers, weights and number of epochs (as in the study,
twice as many for the head); each side in a process of its own, taking turns, over several seeds.
The time starts with the process and ends with the predictions for the test split. A few images of
each class are enough for a ratio of times, though not for a good accuracy; with few, what every
process costs, whatever the number of images, makes the ratio smaller.

A training takes up to a quarter of an hour; each is stored at once, and not repeated when the
script is started again on the same kind of machine.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean, median

DATASET = "grocery" if "FRUITVEG_DATA" in os.environ else "synthetic"
SIDES = ("usual recipe", "this package")
VIEWS = 4
PER_CLASS = {"vgg16": 2, "resnet50": 8, "mobilenetv2": 8}  # images to train on
SIZE, EPOCHS = 224, 15


def usual(root: str, backbone: str, seed: int) -> float:
    """Train as the guide does; return the test accuracy."""
    import keras

    from fruitveg_tl.data.augmentation import augmenter
    from fruitveg_tl.models import backbones, weights

    entry = backbones.BACKBONES[backbone]
    keras.utils.set_random_seed(seed)
    parts = {
        split: keras.utils.image_dataset_from_directory(
            Path(root) / split,
            image_size=(SIZE, SIZE),
            crop_to_aspect_ratio=True,
            shuffle=split == "train",
            seed=seed,
            verbose=False,
        )
        for split in ("train", "validation", "test")
    }
    classes = len(parts["train"].class_names)
    base = entry.constructor(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    base.set_weights(weights.resolve(entry).values)
    base.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = entry.preprocess_input(augmenter(seed)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    outputs = keras.layers.Dense(classes, "softmax")(keras.layers.Dropout(0.2)(x))
    model = keras.Model(inputs, outputs)
    names = [layer.name for layer in base.layers]
    phases = (1e-3, len(names), 2), (1e-5, names.index(entry.boundary) + 1, 1)
    for rate, boundary, times in phases:
        base.trainable = boundary < len(names)
        for position, layer in enumerate(base.layers):
            norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = position >= boundary and not norm
        model.compile(
            keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        model.fit(
            parts["train"], validation_data=parts["validation"], epochs=times * EPOCHS, verbose=0
        )
    return model.evaluate(parts["test"], verbose=0)[1]


def package(root: str, backbone: str, seed: int) -> float:
    """Train as this package does, without early stopping; return the test accuracy."""
    from fruitveg_tl import results
    from fruitveg_tl.config import FINETUNED, RunConfig
    from fruitveg_tl.run import train_and_evaluate

    config = RunConfig(
        root,
        backbone,
        size=SIZE,
        views=VIEWS,
        seed=seed,
        probe_epochs=2 * EPOCHS,
        finetune_epochs=EPOCHS,
        patience=2 * EPOCHS,
    )
    return results.load(train_and_evaluate(config)).scores[FINETUNED]["accuracy"]


def _images(images_per_class: dict[str, int]) -> Iterator[tuple[str, str, Path]]:
    """Give so many images of each class that every split has."""
    from fruitveg_tl.data import registry

    dataset = registry.load(DATASET)
    everywhere = dataset.index.groupby("label")["split"].transform("nunique") == len(
        images_per_class
    )
    for (split, label), images in dataset.index[everywhere].groupby(["split", "label"]):
        for path in images["path"].head(images_per_class[split]):
            yield {"val": "validation"}.get(split, split), label, dataset.root / path


def one(side: str, root: str, backbone: str, seed: int) -> dict[str, float | str]:
    """Measure one training in this process."""
    start = time.perf_counter()
    accuracy = {SIDES[0]: usual, SIDES[1]: package}[side](root, backbone, seed)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB

    from fruitveg_tl.models import backbones, weights

    used = weights.resolve(backbones.BACKBONES[backbone]).sha256[:8]
    return {"seconds": seconds, "GiB": memory, "accuracy": accuracy, "weights": used}


def main() -> None:
    """Measure what is not measured yet, side by side and seed by seed, and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(PER_CLASS), choices=PER_CLASS)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*json.loads(options.one))))
        return
    from record import HERE, in_own_process, link_images, machine, save

    from fruitveg_tl.utils import runtime
    from fruitveg_tl.utils.storage import write_json

    store = HERE / "results" / f"{Path(__file__).stem}-runs.json"
    runs = json.loads(store.read_text()) if store.exists() else []
    here = machine(runtime.environment())
    for backbone, seed in product(options.backbones, range(options.seeds)):
        train = PER_CLASS[backbone]
        asked = {
            "backbone": backbone,
            "seed": seed,
            "setting": _setting(backbone),
            "machine": here,
        }
        done = {run["by"] for run in runs if asked.items() <= run.items()}
        missing = [side for side in SIDES if side not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as root:
            images_per_class = {"train": train, "val": -(-train // 4), "test": train}
            link_images(Path(root), _images(images_per_class))
            for side in missing:
                found = in_own_process(__file__, [side, root, backbone, seed])
                runs.append(asked | {"by": side} | found | {"commit": runtime.commit()})
                write_json(store, runs)
                print(runs[-1], flush=True)
    save(Path(__file__).stem, _rows([run for run in runs if run["machine"] == here]))


def _setting(backbone: str) -> str:
    return (
        f"{PER_CLASS[backbone]} of each class of {DATASET}, {SIZE} px, {2 * EPOCHS} + {EPOCHS} "
        "epochs"
    )


def _rows(runs: list[dict]) -> list[dict]:
    from record import span

    from fruitveg_tl.models.backbones import BACKBONES

    rows = []
    for backbone in PER_CLASS:
        asked = (backbone, _setting(backbone))
        sides = {side: [] for side in SIDES}
        for run in runs:
            if (run["backbone"], run["setting"]) == asked:
                sides[run["by"]].append(run)
        if not all(sides.values()):
            continue  # this backbone is still to be measured
        seconds = {side: [run["seconds"] for run in sides[side]] for side in SIDES}
        typical = {side: median(seconds[side]) for side in SIDES}
        for side, measured in sides.items():
            accuracies = [run["accuracy"] for run in measured]
            rows.append(
                {
                    "Backbone": BACKBONES[backbone].name,
                    "By": side,
                    "Seconds": f"{typical[side]:.0f}",
                    "Range of seconds": span(seconds[side], ".0f"),
                    "Ratio of times": f"{typical[SIDES[0]] / typical[side]:.1f}",
                    "Peak GiB": f"{median(run['GiB'] for run in measured):.1f}",
                    "Accuracy": f"{mean(accuracies):.3f}",
                    "Range of accuracies": span(accuracies, ".3f"),
                    "Seeds": len(measured),
                    "Setting": asked[1],
                    "Weights": _all(run["weights"] for run in measured),
                    "Commit": _all(run["commit"][:9] for run in measured),
                }
            )
    return rows


def _all(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


if __name__ == "__main__":
    main()
