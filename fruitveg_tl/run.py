"""One run from images to results: resumable after every epoch, written in one atomic step.

The protocol is LP-FT (Kumar et al. 2022): a linear probe on the frozen backbone, then fine-tuning
from that head at a low rate, so that random gradients never reach pre-trained layers. BatchNorm
stays in inference mode. The linear probe stops early by the validation split; the test split is
used once, after training. Notebooks 02 to 04 repeat the steps in plain Keras, with the same
results.

Every score is computed in float32, with the weights that are saved.
"""

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fruitveg_tl import studies
from fruitveg_tl.config import (
    FINETUNED,
    PATHS,
    PROBE,
    SCRATCH,
    TEST,
    VAL,
    RunConfig,
    Selection,
    Strategy,
    ablations_in_words,
    command,
    divided,
)
from fruitveg_tl.data import preprocess
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import (
    BUNDLED,
    MAKESHIFT,
    RANDOM,
    Backbone,
    backbone_by_name,
    with_defaults,
)
from fruitveg_tl.models.compiled import CONFIDENCE
from fruitveg_tl.models.network import Network, build_network, trainable_parameters, unfreeze
from fruitveg_tl.models.weights import SourceWeights
from fruitveg_tl.studies import MODEL, PROBE_HEAD, Run
from fruitveg_tl.training import inference
from fruitveg_tl.training.features import Outputs, frozen_outputs, outputs_of
from fruitveg_tl.training.fit import KeepEpochs, LogitAdjustedCrossentropy, warmup_cosine
from fruitveg_tl.training.inference import (
    Inference,
    frozen_precision,
    in_precision,
    training_precision,
)
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.progress import note
from fruitveg_tl.utils.storage import (
    exclusive,
    new_folder,
    record_hashes,
    sha256_json,
    write_json,
)

# Images per batch from scratch, which limits memory; more were no faster on two cores.
SCRATCH_BATCH = 16
# BatchNorm statistics of random weights come from every 8th training image, but at least 32.
STATISTICS_EVERY, STATISTICS_LEAST = 8, 32
CHECKED, TOLERANCE = 64, 1e-5  # images, and the largest difference in probability


@dataclass(frozen=True)
class Inputs:
    """The inputs that determine a run's result: `images` are split as the run uses them.

    `source` holds the weights to start from. `recipe` has the backbone's own settings filled in.
    """

    images: Images
    source: SourceWeights
    recipe: RunConfig

    @property
    def backbone(self) -> Backbone:
        """The registry entry, with the run's boundary."""
        return replace(backbone_by_name(self.recipe.backbone), boundary=self.recipe.boundary)

    @cached_property
    def identity(self) -> str:
        """Eight hexadecimal digits: equal for runs that give the same result."""
        images = [self.images.digest, self.images.order]
        return sha256_json([self.recipe.to_dict(), self.source.digest, *images])[:8]

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        recipe = self.recipe
        name = f"{self.images.name}-{recipe.backbone}-{recipe.strategy}-{recipe.size}px"
        return PATHS.runs / f"{name}-seed{recipe.seed}-{self.identity}"


@dataclass
class _Trained:
    """The result of training.

    Attributes:
        recipe: the settings of training.
        network: with its final weights.
        force: whether to repeat finished fits.
        history: a record per stage and epoch.
        probabilities: by stage, of the held-out images, shape (h, classes).
        seconds: of the frozen part, of each stage and of evaluation.
        parameters: number of trained parameters, by stage.
        probe_head: kernel and bias of the linear probe.
        reused: whether the frozen part was cached.
    """

    recipe: RunConfig
    network: Network
    force: bool
    history: list[dict] = field(default_factory=list)
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    probe_head: list[np.ndarray] | None = None
    reused: bool = False

    @property
    def final(self) -> np.ndarray:
        """The probabilities of the last stage: those of the saved network."""
        return list(self.probabilities.values())[-1]


def recipe_for(images: Images, backbone: str, **changes: Any) -> RunConfig:
    """Return all settings of a backbone on these images; a change to None keeps the recipe's."""
    _, usual = divided(images.recipe)
    changed = {name: value for name, value in changes.items() if value is not None}
    return with_defaults(RunConfig(**(usual | {"backbone": backbone} | changed)))


def train(images: Images, source: SourceWeights, config: RunConfig, force: bool = False) -> Run:
    """Train and evaluate one network, or return the finished run of an earlier call.

    `force` repeats a finished run. Raises InputError if images, weights or settings cannot be used.
    """
    inputs = Inputs(images, source, with_defaults(config))
    if not force and (finished := studies.find(inputs.identity)):
        return finished
    # Only one process at a time computes a run, whatever the name of its images.
    with exclusive(PATHS.cache / "runs" / inputs.identity), exclusive(inputs.folder):
        if not force and (finished := studies.find(inputs.identity)):
            return finished
        if source.source in MAKESHIFT:
            note(f"WARNING: {inputs.backbone.name}: {source.source}")
        run = _transfer if inputs.recipe.strategy == Strategy.TRANSFER else _scratch
        return _save(inputs, run(inputs, force))


def jobs(
    images: Images, selection: Selection, configs: Iterable[RunConfig]
) -> Iterator[tuple[Images, SourceWeights, RunConfig]]:
    """Yield the arguments of `train` for every run; load each backbone's weights once.

    Of `selection`, the weights and the number of training images per class are used.
    """
    loaded: dict[tuple, SourceWeights] = {}
    for config in configs:
        choice = "random" if config.strategy == Strategy.SCRATCH else selection.weights
        # Random weights are drawn by the run's seed.
        key = (config.backbone, choice, config.seed if choice == "random" else 0)
        if key not in loaded:
            loaded[key] = weights.resolve(backbone_by_name(config.backbone), choice, key[2])
        count = selection.train_images_per_class
        yield images.subsample(count, config.seed) if count else images, loaded[key], config


# --- training -----------------------------------------------------------------------------------


def starting_network(inputs: Inputs) -> Network:
    """Build a run's network with the weights that it starts from."""
    recipe, values = inputs.recipe, inputs.source.values
    runtime.make_deterministic(recipe.seed)
    classes = len(inputs.images.classes)
    network = build_network(inputs.backbone, classes, recipe.size, values, recipe.divide_by_255)
    norms = [x for x in network.body.layers if isinstance(x, keras.layers.BatchNormalization)]
    if norms and inputs.source.source == RANDOM:
        rows = inputs.images.viewed_rows  # subsamples get the same statistics
        every = min(STATISTICS_EVERY, 1 + len(rows) // STATISTICS_LEAST)
        some = inputs.images.pixels(recipe.size, recipe.crop)[rows[::every]]
        network.body.set_weights(
            weights.estimate_batch_norm_statistics(inputs.backbone, values, some)
        )
    return network


def pooled_outputs(inputs: Inputs, network: Network) -> tuple[Outputs, Outputs]:
    """Return the frozen part's outputs at the boundary, and the pooled features."""
    boundary = frozen_outputs(network.frozen, inputs.images, inputs.recipe)
    return boundary, outputs_of(network.pool, boundary, inputs.recipe)


def pooled_features(images: Images, source: SourceWeights, config: RunConfig) -> np.ndarray:
    """Return the pooled features of every image, cached or computed now.

    They are float32 (n, d), in the order of the index; NaN for unused images.
    """
    inputs = Inputs(images, source, replace(with_defaults(config), views=0))
    _, found = pooled_outputs(inputs, starting_network(inputs))
    features = np.full((len(images.index), *found.shape), np.nan, np.float32)
    features[found.train_rows] = found.views[0]
    features[found.held_out_rows] = found.held_out
    return features


@dataclass(frozen=True)
class _Phase:
    """One phase of training; a step accumulates the gradients of `parts` batches."""

    stage: str
    rate: float
    epochs: int
    patience: int | None = None
    mixup: float = 0.0
    parts: int = 1


def _transfer(inputs: Inputs, force: bool) -> _Trained:
    """Linear probe on the frozen network, then fine-tuning from its head."""
    recipe, network = inputs.recipe, starting_network(inputs)
    _say_state(network.model, network.upper)
    boundary, features = pooled_outputs(inputs, network)
    trained = _Trained(recipe, network, force, reused=boundary.reused and features.reused)
    trained.seconds["frozen"] = boundary.seconds + features.seconds
    if recipe.probe_first:
        _train_probe(trained, features)
    unfreeze(network.upper, recipe.update_batch_norm)
    phase = _Phase(FINETUNED, recipe.finetune_rate, recipe.finetune_epochs, mixup=recipe.mixup)
    _train_layers(trained, network.upper, boundary, phase)
    return trained


def _scratch(inputs: Inputs, force: bool) -> _Trained:
    """Train all layers from the start."""
    recipe, network = inputs.recipe, starting_network(inputs)
    _say_state(network.model, network.model)
    pixels = frozen_outputs(None, inputs.images, recipe)
    trained = _Trained(recipe, network, force, reused=pixels.reused)
    trained.seconds["frozen"] = pixels.seconds
    unfreeze(network.model, batch_norm=True)
    parts = math.ceil(recipe.batch_size / SCRATCH_BATCH)
    phase = _Phase(
        SCRATCH, recipe.scratch_rate, recipe.finetune_epochs, mixup=recipe.mixup, parts=parts
    )
    _train_layers(trained, network.model, pixels, phase)
    return trained


def _say_state(model: keras.Model, trained: keras.Model) -> None:
    # Weights and two moments, of this epoch and the one before.
    size = 4 * (2 * 3 * trained.count_params() + model.count_params())
    note(f"{model.name}: training and the network need {size / 1e6:,.0f} MB of disk")


def _train_probe(trained: _Trained, features: Outputs) -> None:
    """Train a softmax layer on pooled features and copy its weights to the network's head."""
    recipe = trained.recipe
    keras.utils.set_random_seed(recipe.seed)
    layer = keras.layers.Dense(len(features.images.classes), "softmax", name="head")
    head = keras.Sequential([keras.Input(features.shape), layer], name="probe")
    phase = _Phase(PROBE, recipe.probe_rate, recipe.probe_epochs, recipe.patience)
    _fit(trained, head, features, phase)
    trained.probe_head = head.get_weights()
    trained.network.head.set_weights(trained.probe_head)
    trained.probabilities[PROBE] = head.predict(features.held_out, verbose=0)


def _train_layers(trained: _Trained, model: keras.Model, outputs: Outputs, phase: _Phase) -> None:
    """Train a network's layers in the fastest precision here, and predict with them."""
    fast = in_precision(model, training_precision(backbone_by_name(trained.recipe.backbone)))
    # Mixup lowers confidence, so the lowest validation loss precedes the best accuracy
    # (data/tuning/kept.csv). So this trains all epochs and keeps the last one.
    _fit(trained, fast, outputs, phase)
    model.set_weights(fast.get_weights())
    start = time.perf_counter()
    trained.probabilities[phase.stage] = Inference(model).predict(outputs.held_out)
    trained.seconds["evaluation"] = time.perf_counter() - start


def _fit(trained: _Trained, model: keras.Model, outputs: Outputs, phase: _Phase) -> None:
    """Train a model on stored outputs, and record history, time and parameters."""
    recipe, split = trained.recipe, phase.parts > 1
    size = math.ceil(recipe.batch_size / phase.parts)
    batches = outputs.training_batches(size, recipe.seed, phase.mixup)
    validation = outputs.validation_batches(size if split else None)
    rate = warmup_cosine(phase.rate, phase.epochs * len(batches))
    accumulated = phase.parts if split else None
    optimizer = keras.optimizers.AdamW(
        rate, recipe.weight_decay, gradient_accumulation_steps=accumulated
    )
    loss = LogitAdjustedCrossentropy(outputs.images.training_counts, recipe.logit_adjustment)
    model.compile(optimizer, loss, metrics=["accuracy"])
    keep = KeepEpochs(
        model, batches, validation, phase.epochs, phase.patience, phase.stage, trained.force
    )
    model.fit(
        batches,
        validation_data=validation,
        epochs=phase.epochs,
        initial_epoch=keep.start,
        callbacks=[keep],
        shuffle=False,
        verbose=0,
    )
    history = pd.DataFrame(keep.history).drop(columns="seconds")
    history.insert(0, "stage", phase.stage)
    trained.history += history.to_dict("records")
    trained.seconds[phase.stage] = keep.seconds
    trained.parameters[phase.stage] = trainable_parameters(model)


# --- results ------------------------------------------------------------------------------------


def _save(inputs: Inputs, trained: _Trained) -> Run:
    """Store network, probabilities and test scores in one atomic step."""
    # A repeated run keeps its folder, even if its images have been renamed.
    found = studies.find(inputs.identity)
    folder = found.folder if found and found.folder.parent == PATHS.runs else inputs.folder
    with new_folder(folder) as temporary:
        trained.network.model.save(temporary / MODEL)
        record_hashes(temporary / MODEL, *inference.save_openvino(trained.network.model, temporary))
        write_json(temporary / CONFIDENCE, _confidence(inputs, trained))
        if trained.probe_head:
            kernel, bias = trained.probe_head
            np.savez(temporary / PROBE_HEAD, kernel=kernel, bias=bias)
        shutil.copyfile(preprocess.__file__, temporary / "preprocess.py")
        write_json(temporary / "config.json", inputs.recipe.to_dict())
        write_json(temporary / "classes.json", list(inputs.images.classes))
        difference = _difference_of_the_saved(inputs, trained, temporary / MODEL)
        _save_tables(inputs, trained, temporary, folder.name, difference)
    return next(iter(studies.read_study(folder)))


def _save_tables(
    inputs: Inputs, trained: _Trained, folder: Path, name: str, difference: float
) -> None:
    images, arrays = inputs.images, {}
    places = {split: images.places(split) for split in (VAL, TEST)}
    for stage, probabilities in trained.probabilities.items():
        stem = f"{name}/{studies.slug(stage)}"
        for split, rows in places.items():
            arrays[f"{stem}/{split}"] = probabilities[rows].astype(np.float16)
        predicted = probabilities[places[TEST]].argmax(1)
        arrays[f"{stem}/predicted"] = predicted.astype(np.min_scalar_type(len(images.classes)))
    history = pd.DataFrame(trained.history)
    history.insert(0, "run", name)
    kept = [images.index.loc[images.rows(split)] for split in places]
    shown = pd.concat(kept)[["split", "path", "label"]].assign(leaked="")
    shown.insert(0, "images", images.name)
    targets = images.targets[images.rows(TEST)]
    scores = {
        stage: metrics.evaluate(targets, probabilities[places[TEST]])
        for stage, probabilities in trained.probabilities.items()
    }
    row = _row(inputs, trained, scores) | {"saved network differs by": difference}
    runs = pd.DataFrame([{"run": name} | row])
    studies.save_tables(folder, runs, history, shown, arrays)


def _row(inputs: Inputs, trained: _Trained, scores: Mapping[str, Mapping[str, float]]) -> dict:
    """Return the run's row of `runs.csv`."""
    images, source, recipe = inputs.images, inputs.source, inputs.recipe
    by_source = {RANDOM: "random", BUNDLED: "bundled"}
    asked = {"weights": by_source.get(source.source, source.path or "auto")}
    asked |= images.asked
    transfer = recipe.strategy == Strategy.TRANSFER
    if not transfer:
        asked["weights"] = "auto"
    environment = runtime.environment()
    row = {
        "images": images.name,
        "content": images.content,
        "backbone": recipe.backbone,
        "seed": recipe.seed,
        "changes": ablations_in_words(asked | recipe.to_dict(), images.recipe),
        "images per class": images.asked.get("train_images_per_class"),
        "weights": source.source,
        **{f"{split} images": count for split, count in images.split_sizes().items()},
    }
    for stage, values in scores.items():
        row |= {f"{stage} {score}": value for score, value in values.items()}
        row[f"{stage} parameters"] = trained.parameters[stage]
    row |= {f"{part} seconds": spent for part, spent in trained.seconds.items()}
    return row | {
        "evaluated": "float32",
        "frozen precision": frozen_precision(inputs.backbone) if transfer else "",
        "training precision": training_precision(inputs.backbone),
        "engine": inference.engine() if transfer else "",
        "frozen part reused": trained.reused,
        "settings": json.dumps(recipe.to_dict()),
        "command": command(asked | asdict(recipe), _usual(inputs)) if "dataset" in asked else "",
        "identity": inputs.identity,
        "weights sha256": source.sha256 or "",
        "commit": environment["commit"],
        "machine": f"{environment['cpu']}, {environment['cores']} cores",
        "graphics cards": ", ".join(environment["gpus"]),
        "backend": environment["backend"],
        "libraries": json.dumps(environment["libraries"]),
    }


def _usual(inputs: Inputs) -> dict:
    """Return the settings that the run's command can omit."""
    usual = asdict(with_defaults(RunConfig(inputs.recipe.backbone)))
    return usual | {
        name: value for name, value in inputs.images.recipe.items() if value is not None
    }


def _confidence(inputs: Inputs, trained: _Trained) -> dict[str, float]:
    """Return the confidence from which the network's answers are sure, see `metrics.sure_from`."""
    images = inputs.images
    return metrics.sure_from(images.targets[images.rows(VAL)], trained.final[images.places(VAL)])


def _difference_of_the_saved(inputs: Inputs, trained: _Trained, file: Path) -> float:
    """Return the largest difference of the saved network's probabilities on held-out images."""
    held_out = inputs.images.held_out
    places = np.linspace(0, len(held_out) - 1, min(CHECKED, len(held_out))).astype(int)
    pixels = inputs.images.pixels(inputs.recipe.size, inputs.recipe.crop)
    saved = keras.saving.load_model(file, compile=False)
    images = pixels[held_out[places]].astype(np.float32)
    parts = np.array_split(images, math.ceil(len(images) / SCRATCH_BATCH))
    again = np.concatenate([saved.predict_on_batch(part) for part in parts])
    difference = float(np.abs(again - trained.final[places]).max())
    if difference > TOLERANCE:
        note(f"WARNING: {file.parent.name}: once saved, it differs by {difference:.1e}")
    return difference
