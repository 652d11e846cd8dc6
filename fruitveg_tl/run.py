"""One run from images to results: resumable step by step, written in one piece.

The protocol is LP-FT (Kumar et al. 2022): a linear probe on the frozen backbone first, then
fine-tuning from that head at a low rate, so that random gradients never reach pre-trained
layers. BatchNorm stays in inference mode; whatever chooses an epoch looks at the validation split
alone; the test split is read once, when training is over.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fruitveg_tl import results
from fruitveg_tl.config import FINETUNED, PATHS, PROBE, SCRATCH, RunConfig
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.inputs import (
    Inputs,
    build_networks,
    frozen_part,
    gather,
    use_batch_norm_statistics,
)
from fruitveg_tl.models import weights
from fruitveg_tl.models.network import Network, trainable_parameters
from fruitveg_tl.training.data_parallel import data_parallel, predict_on_batch
from fruitveg_tl.training.features import Activations
from fruitveg_tl.training.fit import (
    Batches,
    Phase,
    adamw,
    fit_resumable,
    interpolate,
    logit_adjusted_crossentropy,
)
from fruitveg_tl.training.inference import Inference
from fruitveg_tl.training.pointwise import with_products
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.progress import note
from fruitveg_tl.utils.storage import exclusive, own_folder, remove

EVALUATION_BATCH = 64
# From scratch, images that go through all layers at a time: the gradient needs each layer's output
# of each of them. More were no faster on two cores.
SCRATCH_BATCH = 16
# What the generator of a phase's batches is seeded with, beside the run's seed and the epoch.
PHASE_SEEDS = {PROBE: 12, FINETUNED: 10, SCRATCH: 7}


@dataclass
class _State:
    """What the steps of a run work on."""

    inputs: Inputs
    pixels: np.ndarray
    network: Network
    trainable: keras.Model  # the network's tail, or a copy in the precision to train in
    activations: Activations
    folder: Path  # of what is kept while the run is unfinished
    seconds: dict[str, float]
    started: float
    history: list[dict] = field(default_factory=list)
    probabilities: dict[str, dict[str, np.ndarray]] = field(
        default_factory=lambda: {"test": {}, "val": {}}
    )
    trained_parameters: dict[str, int] = field(default_factory=dict)
    interpolation: dict[str, float] | None = None

    def evaluation(self, split: str, plain: np.ndarray | None = None) -> Batches:
        """Return a split in order: of the plain activations, or of another array of all images."""
        rows = self.inputs.dataset.rows(split)
        array = self.activations.plain if plain is None else plain
        batch = EVALUATION_BATCH if self.inputs.transfer else SCRATCH_BATCH
        return Batches([(array, rows)], self.inputs.one_hot(rows), batch)


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
        precision: see `Inputs`; default: `runtime.fast_precision`.
        devices: how many share every batch, see `data_parallel.data_parallel`.

    Returns:
        the folder with the results, see `results`.

    Raises:
        InputError: if images, weights or settings cannot be used.
    """
    inputs = gather(config, data, precision, devices)
    if not force and (finished := results.find(inputs.identity)):
        return finished
    # One process at a time computes a run, however its images are called.
    with exclusive(PATHS.cache / "runs" / inputs.identity), exclusive(inputs.folder):
        if not force and (finished := results.find(inputs.identity)):
            return finished
        with data_parallel(devices):
            state = _compute_frozen_part(inputs)
            _train(state)
            return _save(state)


# --- the frozen part ----------------------------------------------------------------------------


def _compute_frozen_part(inputs: Inputs) -> _State:
    """Decode the images, build the network and compute what never changes, each once."""
    started, seconds = time.perf_counter(), {}
    config, dataset = inputs.config, inputs.dataset
    if inputs.source.source in weights.MAKESHIFT:
        note(f"WARNING: {inputs.backbone.name}: {inputs.source.source}")
    network, fast = build_networks(inputs)
    _say_what_it_takes(inputs, network)
    with _timed(seconds, "decode"):
        pixels = dataset.pixels(config.size, config.crop)
    use_batch_norm_statistics(inputs, pixels, {network, fast})
    frozen = frozen_part(inputs, network, fast)
    with exclusive(frozen.folder):  # runs side by side that differ in the seed share them
        activations = frozen.compute(pixels, dataset.rows("train"), config.views)
    seconds["frozen"] = activations.seconds
    folder = own_folder(PATHS.cache / "runs" / inputs.identity)
    trainable = with_products(fast.tail)
    return _State(inputs, pixels, network, trainable, activations, folder, seconds, started)


def _say_what_it_takes(inputs: Inputs, network: Network) -> None:
    config, dataset = inputs.config, inputs.dataset
    frozen = frozen_part(inputs, network, network)
    count, train = len(dataset.index), len(dataset.rows("train"))
    missing = frozen.missing_bytes((count, train), config.size, config.views)
    if not dataset.pixels_file(config.size, config.crop).exists():
        missing += count * config.size**2 * 3
    # The last and the best state, each weights and two moments, beside those of the epoch before.
    state = 4 * (2 * 2 * 3 * network.tail.count_params() + network.model.count_params())
    note(
        f"{inputs.folder.name}: its cache needs {missing / 1e6:,.1f} MB more below {PATHS.cache}, "
        f"which «python -m fruitveg_tl clean» frees; training and the network {state / 1e6:,.0f} MB"
    )


# --- training -----------------------------------------------------------------------------------


def _train(state: _State) -> None:
    config = state.inputs.config
    if not state.inputs.transfer:
        _train_tail(state, SCRATCH, config.scratch_rate)
        return
    if config.probe_first:
        _train_linear_probe(state)
    _train_tail(state, FINETUNED, config.finetune_rate)


def _train_linear_probe(state: _State) -> None:
    """Train a softmax layer on pooled features and hand its weights to the network's head."""
    config, activations, dataset = state.inputs.config, state.activations, state.inputs.dataset
    keras.utils.set_random_seed(config.seed)
    head = keras.layers.Dense(len(dataset.classes), "softmax")
    probe = keras.Sequential([keras.Input(activations.pooled_plain.shape[1:]), head])
    views = [activations.pooled_plain, *activations.pooled_views]
    _fit(
        state,
        probe,
        views,
        Phase(PROBE, config.probe_epochs, config.probe_rate, 0.0, config.patience),
    )
    state.network.head.set_weights(head.get_weights())
    for split, stages in state.probabilities.items():
        stages[PROBE] = predict_on_batch(probe, activations.pooled_plain[dataset.rows(split)])


def _train_tail(state: _State, stage: str, rate: float) -> None:
    """Train what lies behind the boundary, and predict with it."""
    config, tail, start = state.inputs.config, state.network.tail, state.network.tail.get_weights()
    views = [state.activations.plain, *state.activations.views]
    state.trainable.set_weights(start)
    # Mixup makes probabilities timid, which a loss punishes: its lowest comes before the network is
    # at its best (data/tuning/kept.csv).
    patience = config.patience if config.keep_lowest_loss else None
    phase = Phase(stage, config.finetune_epochs, rate, config.mixup, patience)
    _fit(state, state.trainable, views, phase)
    if stage == FINETUNED and config.keep_lowest_loss:
        state.trainable.compile(loss="categorical_crossentropy")
        state.interpolation = interpolate(state.trainable, start, state.evaluation("val"))
    tail.set_weights(state.trainable.get_weights())
    with _timed(state.seconds, "evaluation"):
        trained = Inference(tail)
        for split, stages in state.probabilities.items():
            batches = (x for x, _ in state.evaluation(split))
            stages[stage] = np.concatenate(list(trained.outputs(batches)))


def _fit(state: _State, model: keras.Model, views: Sequence[np.ndarray], phase: Phase) -> None:
    """Train a model on the views by the phase's schedule, and note what that took."""
    inputs, config = state.inputs, state.inputs.config
    train = inputs.dataset.rows("train")[inputs.train_rows]
    # The plain view holds every image, an augmented one the training images alone.
    pairs = [(views[0], train)] + [(view, inputs.train_rows) for view in views[1:]]
    targets = inputs.one_hot(train)
    steps = phase.epochs * -(-len(train) // config.batch_size)
    whole = inputs.transfer or inputs.devices > 1
    parts = 1 if whole else math.ceil(config.batch_size / SCRATCH_BATCH)
    model.compile(
        adamw(phase.rate, steps, config.weight_decay, parts),
        logit_adjusted_crossentropy(targets.sum(0), config.logit_adjustment),
        metrics=["accuracy"],
    )

    def batches(epoch: int) -> Batches:
        rng = np.random.default_rng([config.seed, PHASE_SEEDS[phase.stage], epoch])
        return Batches(pairs, targets, math.ceil(config.batch_size / parts), rng, phase.mixup)

    validation = state.evaluation("val", views[0])
    history = fit_resumable(model, batches, validation, phase, state.folder / phase.stage)
    state.seconds[phase.stage] = sum(record.pop("seconds") for record in history)
    state.history += [{"stage": phase.stage, **record} for record in history]
    state.trained_parameters[phase.stage] = trainable_parameters(model)


# --- results ------------------------------------------------------------------------------------


def _save(state: _State) -> Path:
    """Evaluate on the test split, store everything in one piece, and forget the unfinished run."""
    inputs, dataset = state.inputs, state.inputs.dataset
    targets = dataset.targets[dataset.rows("test")]
    test = state.probabilities["test"]
    outcome = results.Outcome(
        inputs.config,
        _provenance(state),
        state.history,
        {
            split: dataset.index.loc[dataset.rows(split), ["path", "label"]]
            for split in ("test", "val")
        },
        state.probabilities,
        {stage: metrics.evaluate(targets, p) for stage, p in test.items()},
        metrics.classification_report(targets, list(test.values())[-1], dataset.classes),
        state.network.model,
    )
    # A run that is repeated stays where it is, also if its images are called otherwise by now.
    folder = results.find(inputs.identity) or inputs.folder
    results.save(folder, outcome)
    remove(state.folder)
    return folder


def _provenance(state: _State) -> dict:
    inputs, dataset, source = state.inputs, state.inputs.dataset, state.inputs.source
    counts = dataset.split_sizes() | {"train": len(inputs.train_rows)}
    return {
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.digest,
            "classes": list(dataset.classes),
            "images": counts,
        },
        "weights": {"source": source.source, "file": source.file, "sha256": source.sha256},
        "trained_parameters": state.trained_parameters,
        "interpolation": state.interpolation,
        "frozen_precision": inputs.frozen_precision if inputs.transfer else None,
        "engine": inputs.engine if inputs.transfer else None,
        "training_precision": inputs.precision,
        "frozen_part_reused": state.activations.reused,
        "model_difference": _whole_model_difference(state),
        "seconds": state.seconds | {"this_call": time.perf_counter() - state.started},
        "environment": runtime.environment() | {"devices": inputs.devices},
    }


def _whole_model_difference(state: _State) -> float:
    """Largest difference between the saved network's and the tail's probabilities on 32 images."""
    rows = state.inputs.dataset.rows("test")[:32]
    whole = predict_on_batch(state.network.model, state.pixels[rows].astype(np.float32))
    stored = list(state.probabilities["test"].values())[-1][:32]
    return float(np.abs(whole - stored).max())


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start
