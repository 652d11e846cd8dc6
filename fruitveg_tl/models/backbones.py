"""The three backbones and the network built on each.

A network is one flat Keras graph, raw RGB in and class probabilities out, cut at a *boundary*
layer. What lies before it (the *prefix*) stays frozen for good, so its output can be computed
once; what lies behind it (the *tail*) is trained. Both share their layers with the whole network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from fruitveg_tl.utils.errors import InputError


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry.

    Attributes:
        name: as written in tables, e.g. "ResNet50".
        constructor: from `keras.applications`.
        preprocess_input: the function that the published weights were trained with; each
            architecture has its own (Keras docs, "Keras Applications").
        boundary: name of the last layer that stays frozen during fine-tuning.
        finetune_rate: highest learning rate of AdamW in fine-tuning.
        bfloat16: whether it is faster in bfloat16 on a processor that has the instructions; layers
            with little arithmetic for the memory they move are not (benchmarks/limit.py).
        last_conv: name of the layer that Grad-CAM reads: the last feature map before pooling.
        weights_url: Keras' own ImageNet weights without top.
        weights_md5: the checksum Keras publishes for that file; None where it publishes none.
    """

    name: str
    constructor: Callable[..., keras.Model]
    preprocess_input: Callable
    boundary: str
    finetune_rate: float
    bfloat16: bool
    last_conv: str
    weights_url: str
    weights_md5: str | None

    @property
    def key(self) -> str:
        """Lower-case name for file names and the command line, e.g. "resnet50"."""
        return self.name.lower()

    @property
    def snake_name(self) -> str:
        """The name of its module in `keras.applications`, e.g. "mobilenet_v2"."""
        return self.preprocess_input.__module__.rsplit(".", 1)[-1]

    @property
    def weights_name(self) -> str:
        """The file name under which Keras caches these weights."""
        return self.weights_url.rsplit("/", 1)[-1]


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"

BACKBONES = {
    backbone.key: backbone
    for backbone in (
        Backbone(
            "VGG16",
            keras.applications.VGG16,
            keras.applications.vgg16.preprocess_input,
            boundary="block4_pool",
            finetune_rate=1e-4,
            bfloat16=True,
            last_conv="block5_conv3",
            weights_url=f"{_KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            weights_md5="6d6bbae143d832006294945121d1f1fc",
        ),
        Backbone(
            "ResNet50",
            keras.applications.ResNet50,
            keras.applications.resnet50.preprocess_input,
            boundary="conv4_block6_out",
            finetune_rate=2e-4,
            bfloat16=True,
            last_conv="conv5_block3_out",
            weights_url=f"{_KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            weights_md5="4d473c1dd8becc155b73f8504c6f6626",
        ),
        Backbone(
            "MobileNetV2",
            keras.applications.MobileNetV2,
            keras.applications.mobilenet_v2.preprocess_input,
            boundary="block_5_add",
            finetune_rate=5e-4,
            bfloat16=False,
            last_conv="out_relu",
            weights_url=f"{_KERAS}/mobilenet_v2/"
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
            weights_md5=None,
        ),
    )
}


def divide_by_255(pixels):
    """Scale RGB to 0..1, whatever a backbone was trained with: a mistake made on purpose."""
    return pixels / 255.0


@dataclass(frozen=True)
class Network:
    """A whole network and its parts, which share layers and therefore weights.

    Attributes:
        model: raw RGB (n, size, size, 3) in 0..255 to probabilities (n, classes).
        prefix: raw RGB to the activations at the boundary; None if everything is trained.
        pool: activations at the boundary (or raw RGB without a prefix) to pooled features (n, d).
        tail: the same input as `pool`, to probabilities.
    """

    model: keras.Model
    prefix: keras.Model | None
    pool: keras.Model
    tail: keras.Model

    @property
    def head(self) -> keras.layers.Dense:
        """The softmax layer on the pooled features."""
        return self.model.get_layer("head")


def backbone_by_name(name: str) -> Backbone:
    """Return a registry entry by its name in any case.

    Raises:
        InputError: if there is none, listing those there are.
    """
    try:
        return BACKBONES[name.lower()]
    except KeyError:
        known = ", ".join(backbone.name for backbone in BACKBONES.values())
        raise InputError(f"unknown backbone {name!r}; choose one of {known}") from None


def build_network(
    backbone: Backbone,
    classes: int,
    size: int,
    weights: Sequence[np.ndarray] | None = None,
    frozen: bool = True,
    update_batch_norm: bool = False,
) -> Network:
    """Build backbone, global average pooling and a softmax head as one graph.

    Args:
        backbone: the registry entry.
        classes: number of classes.
        size: side of the input images in pixels, at least 32.
        weights: the backbone's parameters in the order of `get_weights()`; None keeps the random
            initialisation.
        frozen: True for transfer: the prefix is not trainable, and neither is any BatchNorm
            layer, so their statistics stand still also while the tail is fine-tuned (calling
            with `training=False` is not enough in Keras 3, keras #20285). False for training
            from scratch: everything is trainable and there is no prefix.
        update_batch_norm: True trains the tail's BatchNorm layers as well, statistics included.
    """
    pixels = keras.Input((size, size, 3), name="rgb_0_255")
    body = backbone.constructor(
        weights=None, include_top=False, input_tensor=backbone.preprocess_input(pixels)
    )
    if weights is not None:
        body.set_weights(weights)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(body.output)
    # The head's output is float32 whatever the precision of the rest: probabilities near 0 and 1.
    output = keras.layers.Dense(classes, "softmax", dtype="float32", name="head")(pooled)
    model = keras.Model(pixels, output, name=backbone.key)
    norms = [layer for layer in body.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        # Keras' 0.99 and 0.999 need thousands of steps to follow; here are hundreds.
        norm.momentum = 0.9
    if not frozen:
        return Network(model, None, keras.Model(pixels, pooled), model)
    boundary = body.get_layer(backbone.boundary).output
    for norm in norms:
        norm.trainable = update_batch_norm
    prefix = keras.Model(pixels, boundary, name="prefix")
    prefix.trainable = False
    return Network(
        model, prefix, keras.Model(boundary, pooled), keras.Model(boundary, output, name="tail")
    )


def trainable_parameters(model: keras.Model) -> int:
    """Count the parameters that training changes."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
