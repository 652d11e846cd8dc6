"""The same schedule, seed and epochs, with and without the cached frozen part.

Both train a linear probe and then the tail on the sample set. Cached: as the package does it, the
time to compute the cache and the checkpoints after every epoch included. Plain: the usual way,
every batch is augmented and goes through the whole network in every epoch of both phases.
"""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["FRUITVEG_HOME"] = tempfile.mkdtemp()  # before the package reads it

import keras
import numpy as np
from record import save

from fruitveg_tl import backbones, datasets, results, runtime, study, training
from fruitveg_tl.augment import augmenter
from fruitveg_tl.config import FINETUNED, PROBE, RunConfig

CONFIG = RunConfig(
    "sample", "", weights="random", size=64, views=2, probe_epochs=8, finetune_epochs=8
)
# No early stop: both sides train the same number of epochs.
CONFIG = replace(CONFIG, patience=CONFIG.probe_epochs)


class Augmented(training.Batches):
    """Batches of photographs, augmented anew each time they are read."""

    augment = staticmethod(augmenter(0))

    def __getitem__(self, index):
        pixels, labels = super().__getitem__(index)
        return np.asarray(self.augment(pixels, training=True)), labels


def cached(config: RunConfig) -> float:
    """Return the seconds of the cache and both phases."""
    name = study.run(config).name
    runs = results.read()
    return runs[(runs["run"] == name) & (runs["stage"] == FINETUNED)]["seconds"].item()


def plain(config: RunConfig) -> float:
    """Return the seconds of both phases."""
    runtime.make_deterministic(config.seed)
    dataset = datasets.load(config.dataset)
    pixels = dataset.pixels(config.size)
    backbone = backbones.BACKBONES[config.backbone]
    network = backbones.build_network(backbone, len(dataset.classes), config.size)
    one_hot = np.eye(len(dataset.classes), dtype=np.float32)[dataset.labels]
    parts = {split: dataset.rows(split) for split in ("train", "val", "test")}
    tail = {layer.name for layer in network.tail.layers if layer.trainable}
    start = time.perf_counter()
    for stage, rate, epochs in (
        (PROBE, config.probe_rate, config.probe_epochs),
        (FINETUNED, backbone.finetune_rate, config.finetune_epochs),
    ):
        for layer in network.model.layers:
            layer.trainable = layer.name == "head" if stage == PROBE else layer.name in tail
        network.model.compile(
            keras.optimizers.AdamW(rate, weight_decay=config.weight_decay),
            "categorical_crossentropy",
            metrics=["accuracy"],
        )
        for epoch in range(epochs):
            rng = np.random.default_rng([config.seed, epoch])
            train, val = (one_hot[parts[split]] for split in ("train", "val"))
            mixup = 0 if stage == PROBE else config.mixup
            batches = Augmented([pixels], [parts["train"]], train, config.batch_size, rng, mixup)
            training.run_epoch(network.model, batches, learn=True)
            validation = training.Batches([pixels], [parts["val"]], val, 64)
            training.run_epoch(network.model, validation)
    return time.perf_counter() - start


def main() -> None:
    """Measure every backbone and store the table."""
    rows = []
    for backbone in backbones.BACKBONES.values():
        config = replace(CONFIG, backbone=backbone.key)
        with_cache, without = cached(config), plain(config)
        rows.append(
            {
                "Backbone": backbone.name,
                "Epochs": f"{config.probe_epochs} + {config.finetune_epochs}",
                "With cache (s)": round(with_cache, 1),
                "Without (s)": round(without, 1),
                "Ratio": round(without / with_cache, 1),
            }
        )
        print(rows[-1], flush=True)
    save(Path(__file__).stem, rows)


if __name__ == "__main__":
    main()
