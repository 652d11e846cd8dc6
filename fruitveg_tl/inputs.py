"""What a run starts from, and what tells it from every other run."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl.config import PATHS, RunConfig
from fruitveg_tl.data import registry
from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import Backbone, backbone_by_name
from fruitveg_tl.models.network import Network, Variant, build_network
from fruitveg_tl.training import inference
from fruitveg_tl.training.features import FrozenPart, activations_key
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.storage import exclusive, own_folder, sha256_json

# Random weights get their BatchNorm statistics from every so many of the training images, and from
# no fewer than the second number.
STATISTICS_EVERY, STATISTICS_LEAST = 8, 32
# Settings whose default the registry knows.
BACKBONES_OWN = ("boundary", "finetune_rate", "weight_decay")


@dataclass(frozen=True)
class Inputs:
    """Everything that a run's result follows from.

    Attributes:
        config: with the backbone's own settings filled in.
        dataset: the images, split as the run uses them.
        backbone: the registry entry, cut where the run cuts it.
        source: the weights to start from.
        precision: dtype policy of training; the stored network is float32.
        frozen_precision: of the frozen part.
        engine: that computes the frozen part, see `inference.engine`.
        devices: how many share every batch.
    """

    config: RunConfig
    dataset: Dataset
    backbone: Backbone
    source: weights.SourceWeights
    precision: str
    frozen_precision: str
    engine: str
    devices: int

    @property
    def transfer(self) -> bool:
        """Whether there is a frozen part."""
        return self.config.strategy == "transfer"

    @cached_property
    def identity(self) -> str:
        """Eight hexadecimal digits: equal for runs that give the same result."""
        images = [self.dataset.digest, self.dataset.order]
        return sha256_json([self.config.identity(), self.source.digest, *images])[:8]

    @property
    def folder(self) -> Path:
        """Where the results go."""
        config = self.config
        name = f"{self.dataset.name}-{self.backbone.key}-{config.strategy}-{config.size}px"
        return PATHS.results / f"{name}-seed{config.seed}-{self.identity}"

    @cached_property
    def train_rows(self) -> np.ndarray:
        """Positions, among the training images, of those to train on."""
        targets = self.dataset.targets[self.dataset.rows("train")]
        order = np.random.default_rng(self.config.seed).permutation(len(targets))
        by_class = pd.Series(targets[order]).groupby(targets[order]).cumcount().to_numpy()
        most = self.config.train_images_per_class or len(targets)
        return np.sort(order[by_class < most])

    def one_hot(self, rows: np.ndarray) -> np.ndarray:
        """Return the targets of these rows of the index as float32, shape (n, classes)."""
        return np.eye(len(self.dataset.classes), dtype=np.float32)[self.dataset.targets[rows]]


def gather(
    config: RunConfig, data: str | None = None, precision: str | None = None, devices: int = 1
) -> Inputs:
    """Find the images and the weights of a run; see `train_and_evaluate`."""
    backbone = backbone_by_name(config.backbone)
    dataset = registry.load(config.dataset, config.label_level, data, config.resplit)
    choice = "random" if config.strategy == "scratch" else config.weights
    training = precision or runtime.fast_precision(backbone.bfloat16)
    engine = inference.engine() if devices == 1 else inference.KERAS
    # In OpenVINO every backbone is faster in bfloat16, and no less accurate (benchmarks/engine.py).
    frozen = precision or runtime.fast_precision(True) if engine == inference.OPENVINO else training
    for name in BACKBONES_OWN:
        if getattr(config, name) is None:
            config = replace(config, **{name: getattr(backbone, name)})
    return Inputs(
        config,
        dataset,
        replace(backbone, boundary=config.boundary),
        weights.resolve(backbone, choice, config.seed),
        training,
        frozen,
        engine,
        devices,
    )


def build_networks(inputs: Inputs) -> tuple[Network, Network]:
    """Build the network to keep, and the one to compute with: the same where that is float32."""
    config, classes = inputs.config, len(inputs.dataset.classes)
    runtime.make_deterministic(config.seed)
    start = inputs.source.values
    variant = Variant(inputs.transfer, config.update_batch_norm, config.divide_by_255)
    network = build_network(inputs.backbone, classes, config.size, start, variant)
    if inputs.precision == "float32":
        return network, network
    with runtime.dtype_policy(inputs.precision):
        return network, build_network(inputs.backbone, classes, config.size, start, variant)


def use_batch_norm_statistics(inputs: Inputs, pixels: np.ndarray, networks: set[Network]) -> None:
    """Give random weights the BatchNorm statistics of some training images; others have their own.

    Args:
        inputs: of the run.
        pixels: all images, uint8 (n, size, size, 3).
        networks: built from `inputs`; changed in place.
    """
    if inputs.source.source != weights.RANDOM:
        return
    train = inputs.dataset.rows("train")
    some = train[:: min(STATISTICS_EVERY, 1 + len(train) // STATISTICS_LEAST)]
    values = weights.estimate_batch_norm_statistics(
        inputs.backbone, inputs.source.values, pixels[some]
    )
    for network in networks:
        network.body.set_weights(values)


def frozen_part(inputs: Inputs, network: Network, fast: Network) -> FrozenPart:
    """Return the frozen part, in a folder named by all that its output depends on.

    Args:
        inputs: of the run; from scratch, the output is the pixels themselves.
        network: the network to keep, which OpenVINO computes in the precision it is asked for.
        fast: the network that Keras computes with.
    """
    config, backbone = inputs.config, inputs.backbone
    decoded = inputs.dataset.pixels_key(config.size, config.crop)
    if inputs.transfer:
        part = f"{backbone.key} to {backbone.boundary}" + "/255" * config.divide_by_255
        computed = f"{inputs.engine} {inputs.frozen_precision}"
        key = activations_key(decoded, part, inputs.source.digest, computed)
    else:
        key = activations_key(decoded, "pixels", "", "uint8")
    folder = own_folder(PATHS.cache / "activations") / f"{backbone.key}-{config.size}px-{key}"
    computing = network if inputs.engine == inference.OPENVINO else fast
    pool = computing.pool if inputs.transfer else None
    return FrozenPart(computing.prefix, pool, folder, inputs.frozen_precision)


def pooled_features(inputs: Inputs) -> np.ndarray:
    """Return what a linear probe sees of every image, from disk or computed now.

    Args:
        inputs: of a run by transfer.

    Returns:
        float32 (n, d), in the order of the index.
    """
    config, dataset = inputs.config, inputs.dataset
    network, fast = build_networks(inputs)
    pixels = dataset.pixels(config.size, config.crop)
    use_batch_norm_statistics(inputs, pixels, {network, fast})
    frozen = frozen_part(inputs, network, fast)
    with exclusive(frozen.folder):
        return frozen.compute(pixels, dataset.rows("train"), views=0).pooled_plain
