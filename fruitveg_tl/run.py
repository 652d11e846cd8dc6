"""One run from images to results: resumable step by step, written in one piece.

The protocol is LP-FT (Kumar et al. 2022): a linear probe on the frozen backbone first, then
fine-tuning from that head at a low rate, so that random gradients never reach pre-trained
layers. BatchNorm stays in inference mode; whatever chooses an epoch looks at the validation split
alone; the test split is read once, when training is over.

What is reported is what is saved: every score is that of the saved network in float32.
"""

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl import studies
from fruitveg_tl.config import FINETUNED, PATHS, PROBE, SCRATCH, RunConfig, Selection
from fruitveg_tl.data import preprocess
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.inputs import (
    Inputs,
    activations,
    build_networks,
    frozen_part,
    gather,
)
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import BUNDLED, MAKESHIFT, RANDOM, backbone_by_name, with_defaults
from fruitveg_tl.models.network import Network, trainable_parameters
from fruitveg_tl.models.weights import SourceWeights
from fruitveg_tl.profiles import ablations_in_words
from fruitveg_tl.studies import MODEL, MODEL_HASH, PROBE_HEAD, Run
from fruitveg_tl.training.features import Activations
from fruitveg_tl.training.fit import (
    Batches,
    Phase,
    adamw,
    fit_resumable,
    logit_adjusted_crossentropy,
)
from fruitveg_tl.training.inference import Inference
from fruitveg_tl.training.pointwise import with_products
from fruitveg_tl.utils import replay, runtime
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import note
from fruitveg_tl.utils.storage import (
    exclusive,
    new_folder,
    own_folder,
    remove,
    sha256_file,
    write_json,
)

EVALUATION_BATCH = 64
# From scratch, images that go through all layers at a time: the gradient needs each layer's output
# of each of them. More were no faster on two cores.
SCRATCH_BATCH = 16
# What the generator of a phase's batches is seeded with, beside the run's seed and the epoch.
PHASE_SEEDS = {PROBE: 12, FINETUNED: 10, SCRATCH: 7}
CHECKED, TOLERANCE = 64, 1e-5  # images, and the largest difference of a probability


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
    history: list[dict] = field(default_factory=list)
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)  # of the held-out images
    trained_parameters: dict[str, int] = field(default_factory=dict)
    probe_head: list[np.ndarray] | None = None

    def held_out(self, split: str) -> np.ndarray:
        """Return the places of a split's images in the arrays of held-out images."""
        return np.searchsorted(self.inputs.held_out, self.inputs.images.rows(split))


def train(
    images: Images,
    source: SourceWeights,
    config: RunConfig,
    force: bool = False,
    precision: str | None = None,
) -> Run:
    """Train and evaluate one network, or return what an earlier call has finished.

    Args:
        images: to train and test on.
        source: weights to start from.
        config: how to train.
        force: run again although a finished run is on disk.
        precision: dtype policy of training and of the frozen part; default: what is fast here.

    Returns:
        the finished run.

    Raises:
        InputError: if images, weights or settings cannot be used.
    """
    inputs = gather(images, source, config, precision)
    if not force and (finished := studies.find(inputs.identity)):
        return finished
    # One process at a time computes a run, however its images are called.
    with exclusive(PATHS.cache / "runs" / inputs.identity), exclusive(inputs.folder):
        if not force and (finished := studies.find(inputs.identity)):
            return finished
        state = _compute_frozen_part(inputs)
        _train(state)
        return _save(state)


def jobs(
    images: Images, selection: Selection, configs: Iterable[RunConfig]
) -> Iterator[tuple[Images, SourceWeights, RunConfig]]:
    """Yield what `train` takes for every run, loading each backbone's weights once.

    Args:
        images: that the selection names.
        selection: what is asked for; of it the weights and the number of labels count here.
        configs: how to train.
    """
    loaded: dict[tuple, SourceWeights] = {}
    for config in configs:
        choice = "random" if config.strategy == "scratch" else selection.weights
        # Random weights are drawn by the run's seed.
        key = (config.backbone, choice, config.seed if choice == "random" else 0)
        if key not in loaded:
            loaded[key] = weights.resolve(backbone_by_name(config.backbone), choice, key[2])
        count = selection.train_images_per_class
        yield images.subsample(count, config.seed) if count else images, loaded[key], config


# --- the frozen part ----------------------------------------------------------------------------


def _compute_frozen_part(inputs: Inputs) -> _State:
    """Decode the images, build the network and compute what never changes, each once."""
    seconds: dict[str, float] = {}
    if inputs.source.source in MAKESHIFT:
        note(f"WARNING: {inputs.backbone.name}: {inputs.source.source}")
    network, fast = build_networks(inputs)
    _say_what_it_takes(inputs, network)
    with _timed(seconds, "decode"):
        pixels = inputs.images.pixels(inputs.config.size, inputs.config.crop)
    found = activations(inputs, network, fast, pixels)
    seconds["frozen"] = found.seconds
    folder = own_folder(PATHS.cache / "runs" / inputs.identity)
    return _State(inputs, pixels, network, with_products(fast.tail), found, folder, seconds)


def _say_what_it_takes(inputs: Inputs, network: Network) -> None:
    config, images = inputs.config, inputs.images
    frozen = frozen_part(inputs, network, network)
    missing = frozen.missing_bytes(inputs.viewed, inputs.held_out, config.size, config.views)
    if not images.pixels_file(config.size, config.crop).exists():
        missing += len(images.index) * config.size**2 * 3
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
    config, found = state.inputs.config, state.activations
    keras.utils.set_random_seed(config.seed)
    head = keras.layers.Dense(len(state.inputs.images.classes), "softmax")
    probe = keras.Sequential([keras.Input(found.pooled_held_out.shape[1:]), head])
    phase = Phase(PROBE, config.probe_epochs, config.probe_rate, 0.0, config.patience)
    _fit(state, probe, found.pooled_views, found.pooled_held_out, phase)
    state.probe_head = head.get_weights()
    state.network.head.set_weights(state.probe_head)
    state.probabilities[PROBE] = probe.predict_on_batch(found.pooled_held_out)


def _train_tail(state: _State, stage: str, rate: float) -> None:
    """Train what lies behind the boundary, and predict with it."""
    config, tail, found = state.inputs.config, state.network.tail, state.activations
    state.trainable.set_weights(tail.get_weights())
    # Mixup makes probabilities timid, which a loss punishes: its lowest comes before the network is
    # at its best (data/tuning/kept.csv). So all epochs are trained, and the last one is kept.
    phase = Phase(stage, config.finetune_epochs, rate, config.mixup, None)
    _fit(state, state.trainable, found.views, found.held_out, phase)
    tail.set_weights(state.trainable.get_weights())
    with _timed(state.seconds, "evaluation"):
        state.probabilities[stage] = Inference(tail).predict(found.held_out)


def _in_order(state: _State, held_out: np.ndarray, split: str) -> Batches:
    """Return the batches of a split without augmentation."""
    images = state.inputs.images
    size = EVALUATION_BATCH if state.inputs.transfer else SCRATCH_BATCH
    return Batches([held_out], state.held_out(split), images.one_hot(images.rows(split)), size)


def _fit(
    state: _State,
    model: keras.Model,
    views: Sequence[np.ndarray],
    held_out: np.ndarray,
    phase: Phase,
) -> None:
    """Train a model on the views by the phase's schedule, and note what that took."""
    inputs, config = state.inputs, state.inputs.config
    rows = inputs.images.rows("train")
    places = np.searchsorted(state.activations.train_rows, rows)
    targets = inputs.images.one_hot(rows)
    steps = phase.epochs * math.ceil(len(rows) / config.batch_size)
    parts = 1 if inputs.transfer else math.ceil(config.batch_size / SCRATCH_BATCH)
    model.compile(
        adamw(phase.rate, steps, config.weight_decay, parts),
        logit_adjusted_crossentropy(targets.sum(0), config.logit_adjustment),
        metrics=["accuracy"],
    )

    def batches(epoch: int) -> Batches:
        rng = np.random.default_rng([config.seed, PHASE_SEEDS[phase.stage], epoch])
        size = math.ceil(config.batch_size / parts)
        return Batches(views, places, targets, size, rng, phase.mixup)

    validation = _in_order(state, held_out, "val")
    history = fit_resumable(model, batches, validation, phase, state.folder / phase.stage)
    state.seconds[phase.stage] = sum(record.pop("seconds") for record in history)
    state.history += [{"stage": phase.stage, **record} for record in history]
    state.trained_parameters[phase.stage] = trainable_parameters(model)


# --- results ------------------------------------------------------------------------------------


def _save(state: _State) -> Run:
    """Evaluate on the test split, store everything in one piece, and forget the unfinished run."""
    inputs, images = state.inputs, state.inputs.images
    # A run that is repeated stays where it is, also if its images are called otherwise by now.
    found = studies.find(inputs.identity)
    folder = found.folder if found and found.folder.parent == PATHS.runs else inputs.folder
    with new_folder(folder) as temporary:
        state.network.model.save(temporary / MODEL)
        (temporary / MODEL_HASH).write_text(f"{sha256_file(temporary / MODEL)}  {MODEL}\n")
        if state.probe_head:
            np.savez(temporary / PROBE_HEAD, kernel=state.probe_head[0], bias=state.probe_head[1])
        shutil.copyfile(preprocess.__file__, temporary / "preprocess.py")
        write_json(temporary / "config.json", inputs.config.to_dict())
        write_json(temporary / "classes.json", list(images.classes))
        difference = _difference_of_the_saved(state, temporary / MODEL)
        _save_tables(state, temporary, folder.name, difference)
    with suppress(InputError):  # an earlier version's folder, without our mark
        remove(state.folder)
    return next(iter(studies.read_study(folder)))


def _save_tables(state: _State, folder: Path, name: str, difference: float) -> None:
    images, arrays = state.inputs.images, {}
    for stage, probabilities in state.probabilities.items():
        stem = f"{name}/{studies.slug(stage)}"
        for split in ("val", "test"):
            arrays[f"{stem}/{split}"] = probabilities[state.held_out(split)].astype(np.float16)
        predicted = probabilities[state.held_out("test")].argmax(1)
        arrays[f"{stem}/predicted"] = predicted.astype(np.min_scalar_type(len(images.classes)))
    history = pd.DataFrame(state.history)
    history.insert(0, "run", name)
    kept = [images.index.loc[images.rows(split)] for split in ("val", "test")]
    shown = pd.concat(kept)[["split", "path", "label"]].assign(leaked="")
    shown.insert(0, "images", images.name)
    runs = pd.DataFrame([{"run": name} | _row(state, difference)])
    studies.save_tables(folder, runs, history, shown, arrays)


def _row(state: _State, difference: float) -> dict:
    """Return what `runs.csv` says of the run."""
    inputs, images, source = state.inputs, state.inputs.images, state.inputs.source
    by_source = {RANDOM: "random", BUNDLED: "bundled"}
    asked = {"weights": by_source.get(source.source, source.path or "auto")}
    asked |= images.asked
    if inputs.config.strategy == "scratch":
        asked["weights"] = "auto"
    targets = images.targets[images.rows("test")]
    environment = runtime.environment()
    row = {
        "images": images.name,
        "content": images.content,
        "backbone": inputs.config.backbone,
        "seed": inputs.config.seed,
        "changes": ablations_in_words(asked | inputs.config.to_dict(), images.recipe),
        "images per class": images.asked.get("train_images_per_class"),
        "weights": source.source,
        **{f"{split} images": count for split, count in images.split_sizes().items()},
    }
    for stage, probabilities in state.probabilities.items():
        scores = metrics.evaluate(targets, probabilities[state.held_out("test")])
        row |= {f"{stage} {score}": value for score, value in scores.items()}
        row[f"{stage} parameters"] = state.trained_parameters[stage]
    row |= {f"{part} seconds": spent for part, spent in state.seconds.items()}
    return row | {
        "evaluated": "float32",
        "saved network differs by": difference,
        "frozen precision": inputs.frozen_precision if inputs.transfer else "",
        "training precision": inputs.precision,
        "engine": inputs.engine if inputs.transfer else "",
        "frozen part reused": state.activations.reused,
        "settings": json.dumps(inputs.config.to_dict()),
        "command": replay.command(asked | asdict(inputs.config), _usual(inputs))
        if "dataset" in asked
        else "",
        "identity": inputs.identity,
        "weights sha256": source.sha256 or "",
        "commit": environment["commit"],
        "machine": f"{environment['cpu']}, {environment['cores']} cores",
        "graphics cards": ", ".join(environment["gpus"]),
        "backend": environment["backend"],
        "libraries": json.dumps(environment["libraries"]),
    }


def _usual(inputs: Inputs) -> dict:
    """Return the settings that the run's command need not name: None is the backbone's own."""
    usual = asdict(with_defaults(RunConfig(inputs.config.backbone)))
    return usual | {
        name: value for name, value in inputs.images.recipe.items() if value is not None
    }


def _difference_of_the_saved(state: _State, file: Path) -> float:
    """Return the largest difference of the saved network's probabilities, in plain Keras.

    It is asked about some held-out images, spread over all of them.
    """
    held_out = state.inputs.held_out
    places = np.linspace(0, len(held_out) - 1, min(CHECKED, len(held_out))).astype(int)
    saved = keras.saving.load_model(file, compile=False)
    images = state.pixels[held_out[places]].astype(np.float32)
    parts = np.array_split(images, math.ceil(len(images) / SCRATCH_BATCH))
    again = np.concatenate([saved.predict_on_batch(part) for part in parts])
    difference = float(np.abs(again - list(state.probabilities.values())[-1][places]).max())
    if difference > TOLERANCE:
        note(f"WARNING: {file.parent.name}: once saved, it differs by {difference:.1e}")
    return difference


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start
