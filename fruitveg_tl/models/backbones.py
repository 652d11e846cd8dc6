"""The registry of backbones from `keras.applications`.

Keras is imported only when a network is built, so that the command line starts quickly.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fruitveg_tl.config import RunConfig
from fruitveg_tl.utils.errors import InputError

if TYPE_CHECKING:
    import keras

# Names in tables of weights that Keras does not publish.
RANDOM = "none (random)"
BUNDLED = "Tiny ImageNet (bundled)"
MAKESHIFT = (RANDOM, BUNDLED)  # named next to every result that uses them

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry.

    Attributes:
        name: of the class in `keras.applications`, e.g. "MobileNetV2".
        module: of `keras.applications` with its `preprocess_input`, e.g. "mobilenet_v2".
        boundary: name of the last layer that stays frozen during fine-tuning.
        finetune_rate: highest learning rate of AdamW in fine-tuning.
        frozen_bfloat16: whether the frozen part may compute training images in bfloat16 without
            loss of accuracy (data/tuning/precision.csv).
        bfloat16: whether training is faster in bfloat16 on a processor that supports it
            (benchmarks/share_of_peak.py).
        last_conv: name of the last feature map before pooling, for Grad-CAM.
        weights_url: Keras' ImageNet weights without top.
        weights_md5: the checksum that Keras publishes for that file, if any.
        weight_decay: of AdamW, in every phase.
    """

    name: str
    module: str
    boundary: str
    finetune_rate: float
    bfloat16: bool
    last_conv: str
    weights_url: str
    weights_md5: str | None = None
    weight_decay: float = 1e-2
    frozen_bfloat16: bool = True

    @property
    def key(self) -> str:
        """Lower-case name for file names and the command line, e.g. "resnet50"."""
        return self.name.lower()

    @property
    def constructor(self) -> "Callable[..., keras.Model]":
        """The class in `keras.applications`."""
        return getattr(_applications(), self.name)

    @property
    def preprocess_input(self) -> Callable:
        """The preprocessing of the published weights."""
        return getattr(_applications(), self.module).preprocess_input

    @property
    def weights_name(self) -> str:
        """The file name under which Keras caches these weights."""
        return self.weights_url.rsplit("/", 1)[-1]


def _applications():
    from fruitveg_tl.utils.backend import keras

    return keras.applications


_ENTRIES = (
    Backbone(
        "VGG16",
        "vgg16",
        boundary="block4_pool",
        finetune_rate=3e-4,
        bfloat16=True,
        last_conv="block5_conv3",
        weights_url=f"{_KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="6d6bbae143d832006294945121d1f1fc",
    ),
    Backbone(
        "ResNet50",
        "resnet50",
        boundary="conv4_block6_out",
        finetune_rate=5e-4,
        bfloat16=True,
        last_conv="conv5_block3_out",
        weights_url=f"{_KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="4d473c1dd8becc155b73f8504c6f6626",
    ),
    Backbone(
        "MobileNetV2",
        "mobilenet_v2",
        boundary="block_5_add",
        finetune_rate=2e-4,
        bfloat16=False,
        last_conv="out_relu",
        weights_url=f"{_KERAS}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        frozen_bfloat16=False,
    ),
)
BACKBONES = {backbone.key: backbone for backbone in _ENTRIES}


def backbone_by_name(name: str) -> Backbone:
    """Return a registry entry by its name in any case; an InputError lists the known names."""
    try:
        return BACKBONES[name.lower()]
    except KeyError:
        known = ", ".join(backbone.name for backbone in BACKBONES.values())
        raise InputError(f"unknown backbone {name!r}; choose one of {known}") from None


def with_defaults(config: RunConfig) -> RunConfig:
    """Return the settings with the backbone's defaults in place of None."""
    backbone = backbone_by_name(config.backbone)
    own = ("boundary", "finetune_rate", "weight_decay")
    return replace(config, **{x: getattr(backbone, x) for x in own if getattr(config, x) is None})
