"""One run from images to results: resumable step by step, written in one piece.

The protocol is LP-FT (Kumar et al. 2022): a linear probe on the frozen backbone first, then
fine-tuning from that head at a low rate, so that random gradients never reach pre-trained
layers. BatchNorm stays in inference mode; early stopping and the choice of the best epoch look at
the validation split alone; the test split is read once, when training is over.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from fruitveg_tl import results
from fruitveg_tl.config import FINETUNED, PATHS, PROBE, SCRATCH, RunConfig
from fruitveg_tl.data import audit, registry
from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.models import backbones, weights
from fruitveg_tl.training.data_parallel import data_parallel, predict_on_batch
from fruitveg_tl.training.features import Activations, activations_key, compute_activations
from fruitveg_tl.training.fit import (
    Batches,
    fit_resumable,
    interpolate,
    logit_adjusted_crossentropy,
    predict,
)
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import exclusive, sha256_json

EVALUATION_BATCH = 64
# Every so many of the training images, and of a small set this many, give random weights
# their statistics.
STATISTICS_EVERY, STATISTICS_LEAST = 8, 32


@dataclass
class _State:
    """What the steps of one run share."""

    config: RunConfig
    dataset: Dataset
    network: backbones.Network
    trainable_tail: keras.Model  # the network's tail, or a copy in the precision to train in
    activations: Activations
    state: Path
    seconds: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    # Per stage the probabilities for the test and for the validation split.
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    validation: dict[str, np.ndarray] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    interpolation: dict[str, float] | None = None

    def evaluation(self, split: str, plain: np.ndarray) -> Batches:
        rows = self.dataset.rows(split)
        return Batches([plain], [rows], self.one_hot(rows), EVALUATION_BATCH)

    @cached_property
    def train_rows(self) -> np.ndarray:
        """Positions, among the training images, of those to train on."""
        targets = self.dataset.targets[self.dataset.rows("train")]
        order = np.random.default_rng(self.config.seed).permutation(len(targets))
        by_class = pd.Series(targets[order]).groupby(targets[order]).cumcount().to_numpy()
        return np.sort(order[by_class < (self.config.train_images_per_class or len(targets))])

    def one_hot(self, rows: np.ndarray) -> np.ndarray:
        return np.eye(len(self.dataset.classes), dtype=np.float32)[self.dataset.targets[rows]]


def train_and_evaluate(
    config: RunConfig,
    data: str | None = None,
    force: bool = False,
    precision: str | None = None,
    devices: int = 1,
) -> Path:
    """Train and evaluate one network, or return what an earlier call has finished.

    Args:
        config: what to run.
        data: see `registry.load`.
        force: run again although a finished run is on disk.
        precision: to compute in, frozen part and training; default:
            `runtime.fast_precision`. The network stored is float32.
        devices: how many share every batch, see `parallel.data_parallel`.

    Returns:
        the folder with the results, see `results`.

    Raises:
        InputError: if images, weights or settings cannot be used.
    """
    _check(config)
    backbone = backbones.backbone_by_name(config.backbone)
    config = replace(config, finetune_rate=config.finetune_rate or backbone.finetune_rate)
    dataset = registry.load(config.dataset, config.label_level, data)
    if config.resplit:
        dataset = audit.resplit(dataset, dataset.pixels(audit.SIZE))
    scratch = config.strategy == "scratch"
    source = weights.resolve(backbone, "random" if scratch else config.weights, config.seed)
    precision = precision or runtime.fast_precision(backbone.bfloat16)
    # What the weights are counts, not the way they were asked for.
    settings = config.to_dict() | {"weights": source.digest}
    identity = sha256_json([settings, dataset.digest])[:8]
    name = f"{dataset.name}-{backbone.key}-{config.strategy}-{config.size}px-seed{config.seed}"
    folder = PATHS.results / f"{name}-{identity}"
    if folder.exists() and not force:
        return folder
    with exclusive(folder):
        # While this process waited, another may have finished the same run.
        if force or not folder.exists():
            _say_unless_imagenet(backbone, source)
            with data_parallel(devices):
                _execute(config, dataset, source, precision, devices, folder)
    return folder


def _execute(
    config: RunConfig,
    dataset: Dataset,
    source: weights.SourceWeights,
    precision: str,
    devices: int,
    folder: Path,
) -> None:
    backbone = backbones.backbone_by_name(config.backbone)
    scratch = config.strategy == "scratch"
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with _timed(seconds, "decode"):
        pixels = dataset.pixels(config.size, config.crop)
    runtime.make_deterministic(config.seed)
    if source.source == weights.RANDOM:
        train = dataset.rows("train")
        some = pixels[train[:: min(STATISTICS_EVERY, 1 + len(train) // STATISTICS_LEAST)]]
        source = replace(
            source, values=weights.estimate_batch_norm_statistics(backbone, source.values, some)
        )
    if config.divide_by_255:
        backbone = replace(backbone, preprocess_input=backbones.divide_by_255)

    def build() -> backbones.Network:
        return backbones.build_network(
            backbone,
            len(dataset.classes),
            config.size,
            source.values,
            frozen=not scratch,
            update_batch_norm=config.update_batch_norm,
        )

    network = trained = build()
    if precision != "float32":
        with runtime.dtype_policy(precision):
            trained = build()
    activations = _activations(
        config, backbone, dataset, source, network, trained.prefix, precision
    )
    seconds["frozen"] = activations.seconds
    state = PATHS.cache / "runs" / folder.name
    state = _State(config, dataset, network, trained.tail, activations, state, seconds)
    if scratch:
        _train_tail(state, SCRATCH, config.scratch_rate)
    else:
        if config.probe_first:
            _linear_probe(state)
        _train_tail(state, FINETUNED, config.finetune_rate)

    provenance = {
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.digest,
            "classes": list(dataset.classes),
            "images": dataset.split_sizes() | {"train": len(state.train_rows)},
        },
        "weights": {"source": source.source, "file": source.file, "sha256": source.sha256},
        "trained_parameters": state.trained,
        "interpolation": state.interpolation,
        "frozen_precision": None if scratch else precision,
        "training_precision": precision,
        "frozen_part_reused": activations.reused,
        "model_difference": _whole_model_difference(state),
        "seconds": seconds | {"this_call": time.perf_counter() - started},
        "environment": runtime.environment() | {"devices": devices},
    }
    results.write(
        folder,
        config,
        provenance,
        state.history,
        dataset,
        state.probabilities,
        state.validation,
        network.model,
    )
    shutil.rmtree(state, ignore_errors=True)


def _check(config: RunConfig) -> None:
    if config.strategy not in ("transfer", "scratch"):
        raise InputError(f"unknown strategy {config.strategy!r}; choose transfer or scratch")
    if config.size < 32:
        raise InputError(f"size {config.size}: the backbones need at least 32 pixels")
    if config.views < 0 or min(config.probe_epochs, config.finetune_epochs) < 1:
        raise InputError("views must be 0 or more, and every phase needs at least one epoch")
    if not 0 < config.crop <= 1:
        raise InputError(f"crop {config.crop}: a fraction of the image, above 0 and at most 1")
    if config.soup < 1 or not 0 <= config.logit_adjustment <= 1:
        raise InputError(
            "a soup needs at least one training, and logit_adjustment is between 0 and 1"
        )
    if config.soup > 1 and config.strategy == "scratch":
        raise InputError("a soup averages fine-tunings from one probe; from scratch there is none")
    if config.train_images_per_class is not None and config.train_images_per_class < 1:
        raise InputError("at least one image of each class is needed to train on")


def _say_unless_imagenet(backbone: backbones.Backbone, source: weights.SourceWeights) -> None:
    if source.source in weights.MAKESHIFT:
        print(f"WARNING: {backbone.name}: {source.source}", file=sys.stderr)


def _activations(
    config: RunConfig,
    backbone: backbones.Backbone,
    dataset: Dataset,
    source: weights.SourceWeights,
    network: backbones.Network,
    prefix: keras.Model | None,
    precision: str,
) -> Activations:
    pixels = dataset.pixels(config.size, config.crop)
    decoded = dataset.pixels_key(config.size, config.crop)
    if prefix is None:
        key = activations_key(decoded, "pixels", "", "uint8")
        pool = None
    else:
        part = f"{backbone.key} to {backbone.boundary}" + "/255" * config.divide_by_255
        key = activations_key(decoded, part, source.digest, precision)
        pool = network.pool
    folder = PATHS.cache / "activations" / f"{backbone.key}-{config.size}px-{key}"
    with exclusive(folder):  # runs side by side that differ in the seed share them
        return compute_activations(
            pixels, dataset.rows("train"), prefix, pool, config.views, folder
        )


def _linear_probe(state: _State) -> None:
    """Train a softmax layer on pooled features and hand its weights to the network's head."""
    config, found = state.config, state.activations
    keras.utils.set_random_seed(config.seed)
    probe = keras.Sequential(
        [
            keras.Input(found.pooled_plain.shape[1:]),
            keras.layers.Dense(len(state.dataset.classes), "softmax"),
        ]
    )
    views = [found.pooled_plain, *found.pooled_views]
    _fit(state, PROBE, probe, views, config.probe_rate, config.probe_epochs, mixup=0)
    state.network.head.set_weights(probe.layers[-1].get_weights())
    for split, stages in (("test", state.probabilities), ("val", state.validation)):
        features = found.pooled_plain[state.dataset.rows(split)]
        stages[PROBE] = predict_on_batch(probe, features)


def _train_tail(state: _State, stage: str, rate: float) -> None:
    tail, trainable, found = state.network.tail, state.trainable_tail, state.activations
    start = tail.get_weights()
    views, config = [found.plain, *found.views], state.config
    ends = []
    for member in range(config.soup if stage == FINETUNED else 1):
        trainable.set_weights(start)
        _fit(state, stage, trainable, views, rate, config.finetune_epochs, config.mixup, member)
        ends.append(trainable.get_weights())
    tail.set_weights([np.mean(arrays, axis=0) for arrays in zip(*ends, strict=True)])
    if stage == FINETUNED and config.soup == 1:
        tail.compile(loss="categorical_crossentropy")
        state.interpolation = interpolate(tail, start, state.evaluation("val", found.plain))
    with _timed(state.seconds, "evaluation"):
        state.probabilities[stage] = predict(tail, state.evaluation("test", found.plain))
        state.validation[stage] = predict(tail, state.evaluation("val", found.plain))


def _fit(
    state: _State,
    stage: str,
    model: keras.Model,
    views: Sequence[np.ndarray],
    rate: float,
    epochs: int,
    mixup: float,
    member: int = 0,
) -> None:
    config, dataset = state.config, state.dataset
    train = dataset.rows("train")[state.train_rows]
    # The plain view holds every image, an augmented one the training images alone.
    rows = [train] + [state.train_rows] * (len(views) - 1)
    targets = state.one_hot(train)
    steps = epochs * -(-len(train) // config.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / 10, steps, alpha=0.01, warmup_target=rate, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay),
        logit_adjusted_crossentropy(targets.sum(0), config.logit_adjustment),
        metrics=["accuracy"],
    )

    def batches(epoch: int) -> Batches:
        rng = np.random.default_rng([config.seed, len(stage), epoch, member])
        return Batches(views, rows, targets, config.batch_size, rng, mixup)

    validation = state.evaluation("val", views[0])
    # Which epoch is best on few images is luck in part; the mean over a soup has less of it.
    patience = None if stage == FINETUNED and config.soup > 1 else config.patience
    what = f"{stage}, {member + 1} of {config.soup}" if member else stage
    history = fit_resumable(model, batches, validation, epochs, patience, state.state / what, what)
    spent = sum(record.pop("seconds") for record in history)
    state.seconds[stage] = state.seconds.get(stage, 0) + spent
    state.history += [{"stage": stage, **record} for record in history]
    state.trained[stage] = backbones.trainable_parameters(model)


def _whole_model_difference(state: _State) -> float:
    """Largest difference between the saved network's and the tail's probabilities on 32 images."""
    rows = state.dataset.rows("test")[:32]
    pixels = state.dataset.pixels(state.config.size, state.config.crop)[rows].astype(np.float32)
    whole = predict_on_batch(state.network.model, pixels)
    stored = list(state.probabilities.values())[-1][:32]
    return float(np.abs(whole - stored).max())


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start
