"""What a run starts from, and what tells it from every other run."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fruitveg_tl.config import PATHS, RunConfig
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import RANDOM, Backbone, backbone_by_name, with_defaults
from fruitveg_tl.models.network import Network, Variant, build_network
from fruitveg_tl.training import inference
from fruitveg_tl.training.features import Activations, FrozenPart, activations_key
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.storage import exclusive, own_folder, sha256_json

# Random weights get their BatchNorm statistics from every so many of the training images, and from
# no fewer than the second number.
STATISTICS_EVERY, STATISTICS_LEAST = 8, 32


@dataclass(frozen=True)
class Inputs:
    """Everything that a run's result follows from.

    Attributes:
        config: with the backbone's own settings filled in.
        images: split as the run uses them.
        source: the weights to start from.
        precision: dtype policy of training; the stored network is float32.
        frozen_precision: of the training images' way through the frozen part.
        engine: that computes the frozen part, see `inference.engine`.
    """

    config: RunConfig
    images: Images
    source: weights.SourceWeights
    precision: str
    frozen_precision: str
    engine: str

    @property
    def backbone(self) -> Backbone:
        """The registry entry, cut where the run cuts it."""
        return replace(backbone_by_name(self.config.backbone), boundary=self.config.boundary)

    @property
    def transfer(self) -> bool:
        """Whether there is a frozen part."""
        return self.config.strategy == "transfer"

    @cached_property
    def identity(self) -> str:
        """Eight hexadecimal digits: equal for runs that give the same result."""
        images = [self.images.digest, self.images.order]
        return sha256_json([self.config.to_dict(), self.source.digest, *images])[:8]

    @property
    def folder(self) -> Path:
        """Where the results go."""
        config = self.config
        name = f"{self.images.name}-{config.backbone}-{config.strategy}-{config.size}px"
        return PATHS.runs / f"{name}-seed{config.seed}-{self.identity}"

    @property
    def held_out(self) -> np.ndarray:
        """Rows of the validation and test images, rising."""
        return np.sort(np.concatenate([self.images.rows("val"), self.images.rows("test")]))

    @property
    def viewed(self) -> np.ndarray:
        """Rows of the images whose augmented views are stored, rising."""
        return self.images.rows("train") if self.images.viewed is None else self.images.viewed


def gather(
    images: Images,
    source: weights.SourceWeights,
    config: RunConfig,
    precision: str | None = None,
) -> Inputs:
    """Bring together what a run starts from; see `run.train`."""
    backbone = backbone_by_name(config.backbone)
    training = precision or runtime.fast_precision(backbone.bfloat16)
    engine = inference.engine()
    # In OpenVINO every backbone is faster in bfloat16 (benchmarks/engine.py).
    frozen = precision or runtime.fast_precision(engine == inference.OPENVINO or backbone.bfloat16)
    if not (precision or backbone.frozen_bfloat16):
        frozen = "float32"
    return Inputs(with_defaults(config), images, source, training, frozen, engine)


def build_networks(inputs: Inputs) -> tuple[Network, Network]:
    """Build the network to keep, and the one to compute with: the same where that is float32."""
    config, classes = inputs.config, len(inputs.images.classes)
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
    if inputs.source.source != RANDOM:
        return
    some = _seen_by_statistics(inputs)
    values = weights.estimate_batch_norm_statistics(
        inputs.backbone, inputs.source.values, pixels[some]
    )
    for network in networks:
        network.body.set_weights(values)


def _seen_by_statistics(inputs: Inputs) -> np.ndarray:
    train = inputs.viewed  # few labels or all: the same statistics, and so the same frozen part
    return train[:: min(STATISTICS_EVERY, 1 + len(train) // STATISTICS_LEAST)]


def frozen_part(inputs: Inputs, network: Network, fast: Network) -> FrozenPart:
    """Return the frozen part, in a folder named by all that its output depends on.

    Args:
        inputs: of the run; from scratch, the output is the pixels themselves.
        network: the network to keep, which OpenVINO computes in the precision it is asked for.
        fast: the network that Keras computes with.
    """
    config, backbone = inputs.config, inputs.backbone
    decoded = inputs.images.pixels_key(config.size, config.crop)
    if inputs.transfer:
        part = f"{backbone.key} to {backbone.boundary}" + ("/255" if config.divide_by_255 else "")
        computed = f"{inputs.engine} {inputs.frozen_precision}"
        start = inputs.source.digest
        if inputs.source.source == RANDOM:
            start += sha256_json(_seen_by_statistics(inputs).tolist())
        key = activations_key(decoded, part, start, computed)
    else:
        key = activations_key(decoded, "pixels", "", "uint8")
    folder = own_folder(PATHS.cache / "activations") / f"{backbone.key}-{config.size}px-{key}"
    exact = (network.prefix, network.pool if inputs.transfer else None)
    whole = inputs.engine == inference.OPENVINO or inputs.frozen_precision == "float32"
    rounded = exact if whole else (fast.prefix, fast.pool)
    return FrozenPart(exact, rounded, folder, inputs.frozen_precision)


def activations(inputs: Inputs, network: Network, fast: Network, pixels: np.ndarray) -> Activations:
    """Return the frozen part's output, from disk or computed now.

    Args:
        inputs: of the run.
        network: see `frozen_part`.
        fast: see `frozen_part`.
        pixels: all images, uint8 (n, size, size, 3).
    """
    use_batch_norm_statistics(inputs, pixels, {network, fast})
    frozen = frozen_part(inputs, network, fast)
    with exclusive(frozen.folder):  # runs side by side that differ in the seed share them
        return frozen.compute(pixels, inputs.viewed, inputs.held_out, inputs.config.views)


def pooled_features(inputs: Inputs) -> np.ndarray:
    """Return what a linear probe sees of every image in use, from disk or computed now.

    Args:
        inputs: of a run by transfer.

    Returns:
        float32 (n, d), in the order of the index; NaN for images that are not in use.
    """
    inputs = replace(inputs, config=replace(inputs.config, views=0))
    networks = build_networks(inputs)
    pixels = inputs.images.pixels(inputs.config.size, inputs.config.crop)
    found = activations(inputs, *networks, pixels)
    features = np.full((len(pixels), found.pooled_held_out.shape[1]), np.nan, np.float32)
    features[found.train_rows] = found.pooled_views[0]
    features[found.held_out_rows] = found.pooled_held_out
    return features
