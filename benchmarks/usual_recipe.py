"""End to end: the usual transfer-learning recipe against this package.

The usual recipe is the guide's (keras.io/guides/transfer_learning), written plainly:
`image_dataset_from_directory`, augmentation and preprocessing as layers, the frozen base called
with `training=False`, `fit` for the head, then the same layers unfrozen as here and `fit` at a low
rate. Same photographs, size, augmentation layers, weights and number of epochs (as in the study,
twice as many for the head); each side in a process of its own, taking turns, over several seeds.
The time starts with the process and ends with the answers to the test split. A few photographs of
each class are enough for a ratio of times, though not for a good accuracy; with few, what every
process costs, whatever the number of photographs, makes the ratio smaller.

    python benchmarks/usual_recipe.py --backbones vgg16 resnet50 --train 2 8 --epochs 15 --seeds 1 1
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

DATASET = "grocery" if "FRUITVEG_DATA" in os.environ else "sample"
SIDES = ("usual recipe", "this package")
VIEWS = 4


def usual(root: str, backbone: str, size: int, epochs: int, seed: int) -> float:
    """Train as the guide does; return the test accuracy."""
    import keras

    from fruitveg_tl import backbones, weights
    from fruitveg_tl.augment import augmenter

    entry = backbones.BACKBONES[backbone]
    keras.utils.set_random_seed(seed)
    parts = {
        split: keras.utils.image_dataset_from_directory(
            Path(root) / split,
            image_size=(size, size),
            crop_to_aspect_ratio=True,
            shuffle=split == "train",
            seed=seed,
            verbose=False,
        )
        for split in ("train", "validation", "test")
    }
    classes = len(parts["train"].class_names)
    base = entry.constructor(weights=None, include_top=False, input_shape=(size, size, 3))
    base.set_weights(weights.resolve(entry).values)
    base.trainable = False
    inputs = keras.Input((size, size, 3))
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
            parts["train"], validation_data=parts["validation"], epochs=times * epochs, verbose=0
        )
    return model.evaluate(parts["test"], verbose=0)[1]


def package(root: str, backbone: str, size: int, epochs: int, seed: int) -> float:
    """Train as this package does, without early stopping; return the test accuracy."""
    from fruitveg_tl import results, study
    from fruitveg_tl.config import FINETUNED, RunConfig

    config = RunConfig(
        root,
        backbone,
        size=size,
        views=VIEWS,
        seed=seed,
        probe_epochs=2 * epochs,
        finetune_epochs=epochs,
        patience=2 * epochs,
    )
    return results.load(study.run(config)).scores[FINETUNED]["accuracy"]


def _photographs(per_class: dict[str, int]) -> Iterator[tuple[str, str, Path]]:
    """Give so many photographs of each class that every split has."""
    from fruitveg_tl import datasets

    dataset = datasets.load(DATASET)
    everywhere = dataset.index.groupby("label")["split"].transform("nunique") == len(per_class)
    for (split, label), photographs in dataset.index[everywhere].groupby(["split", "label"]):
        for path in photographs["path"].head(per_class[split]):
            yield {"val": "validation"}.get(split, split), label, dataset.root / path


def one(side: str, *arguments) -> dict[str, float]:
    """Measure one training in this process."""
    start = time.perf_counter()
    accuracy = {SIDES[0]: usual, SIDES[1]: package}[side](*arguments)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    return {"seconds": time.perf_counter() - start, "GiB": memory, "accuracy": accuracy}


def main() -> None:
    """Run every side of every backbone and seed in turn and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["vgg16", "resnet50", "mobilenetv2"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--train", type=int, nargs="+", default=[2, 8, 8], help="of each class, for each backbone"
    )
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 3, 3], help="for each backbone")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*json.loads(options.one))))
        return
    from record import link_photographs, save

    rows = []
    for backbone, train, seeds in zip(options.backbones, options.train, options.seeds, strict=True):
        per_class = {"train": train, "val": -(-train // 4), "test": train}
        with tempfile.TemporaryDirectory() as root:
            link_photographs(Path(root), _photographs(per_class))
            found = _compare(root, backbone, options.size, options.epochs, seeds)
        setting = (
            f"{train} of each class of {DATASET}, {options.size} px, "
            f"{2 * options.epochs} + {options.epochs} epochs"
        )
        rows += [row | {"Setting": setting} for row in found]
    save(Path(__file__).stem, rows)


def _compare(root: str, backbone: str, size: int, epochs: int, seeds: int) -> list[dict]:
    from record import in_own_process

    from fruitveg_tl.backbones import BACKBONES

    found = {side: [] for side in SIDES}
    for seed in range(seeds):
        for side in SIDES:
            task = [side, root, backbone, size, epochs, seed]
            found[side].append(in_own_process(__file__, task))
            print(backbone, seed, side, found[side][-1], flush=True)
    seconds = {side: median(run["seconds"] for run in found[side]) for side in SIDES}
    rows = []
    for side, runs in found.items():
        accuracies = [run["accuracy"] for run in runs]
        rows.append(
            {
                "Backbone": BACKBONES[backbone].name,
                "By": side,
                "Seconds": f"{seconds[side]:.0f}",
                "Peak GiB": f"{median(run['GiB'] for run in runs):.1f}",
                "Accuracy": f"{mean(accuracies):.3f}",
                "Lowest to highest": f"{min(accuracies):.3f} to {max(accuracies):.3f}",
                "Seeds": seeds,
                "Ratio of times": f"{seconds[SIDES[0]] / seconds[side]:.1f}",
            }
        )
    return rows


if __name__ == "__main__":
    main()
