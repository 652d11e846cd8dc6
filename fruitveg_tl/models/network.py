"""The network built on a backbone: one flat Keras graph that can be cut at a boundary.

Raw RGB goes in, class probabilities come out. What lies before the *boundary* layer (the *prefix*)
stays frozen for good, so its output can be computed once; what lies behind it (the *tail*) is
trained. Both share their layers with the whole network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fruitveg_tl.models.backbones import Backbone
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError


@dataclass(frozen=True)
class Network:
    """A whole network and its parts, which share layers and therefore weights.

    Attributes:
        model: raw RGB (n, size, size, 3) in 0..255 to probabilities (n, classes).
        prefix: raw RGB to the activations at the boundary; None if everything is trained.
        pool: activations at the boundary (or raw RGB without a prefix) to pooled features (n, d).
        tail: the same input as `pool`, to probabilities.
        body: the backbone, whose parameters have the order of `SourceWeights.values`.
    """

    model: keras.Model
    prefix: keras.Model | None
    pool: keras.Model
    tail: keras.Model
    body: keras.Model

    @property
    def head(self) -> keras.layers.Dense:
        """The softmax layer on the pooled features."""
        return self.model.get_layer("head")


@dataclass(frozen=True)
class Variant:
    """How a network is trained, and which common mistakes are made on purpose.

    Attributes:
        frozen: True for transfer: the prefix is not trainable, and neither is any BatchNorm layer,
            so their statistics stand still also while the tail is fine-tuned (calling with
            `training=False` is not enough in Keras 3, keras #20285). False for training from
            scratch: everything is trainable and there is no prefix.
        update_batch_norm: True trains the tail's BatchNorm layers as well, statistics included.
        divide_by_255: True scales RGB to 0..1, whatever the backbone was trained with.
    """

    frozen: bool = True
    update_batch_norm: bool = False
    divide_by_255: bool = False


def build_network(
    backbone: Backbone,
    classes: int,
    size: int,
    weights: Sequence[np.ndarray] | None = None,
    variant: Variant = Variant(),
) -> Network:
    """Build backbone, global average pooling and a softmax head as one graph.

    Args:
        backbone: the registry entry.
        classes: number of classes.
        size: side of the input images in pixels, at least 32.
        weights: the backbone's parameters in the order of `get_weights()`; None keeps the random
            initialisation.
        variant: what is trained.

    Raises:
        InputError: if the backbone cannot be cut at `backbone.boundary`.
    """
    pixels = keras.Input((size, size, 3), name="rgb_0_255")
    preprocessed = pixels / 255.0 if variant.divide_by_255 else backbone.preprocess_input(pixels)
    body = backbone.constructor(weights=None, include_top=False, input_tensor=preprocessed)
    if weights is not None:
        body.set_weights(weights)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(body.output)
    # The head's output is float32 whatever the precision of the rest: probabilities near 0 and 1.
    output = keras.layers.Dense(classes, "softmax", dtype="float32", name="head")(pooled)
    model = keras.Model(pixels, output, name=backbone.key)
    for norm in (x for x in body.layers if isinstance(x, keras.layers.BatchNormalization)):
        # Keras' 0.99 and 0.999 need thousands of steps to follow; here are hundreds.
        norm.momentum = 0.9
        norm.trainable = variant.update_batch_norm or not variant.frozen
    if not variant.frozen:
        return Network(model, None, keras.Model(pixels, pooled), model, body)
    prefix, boundary, tail = _cut(backbone, model)
    return Network(model, prefix, keras.Model(boundary, pooled), tail, body)


def _cut(backbone: Backbone, model: keras.Model) -> tuple[keras.Model, object, keras.Model]:
    """Return what lies before the boundary, its output, and what lies behind it."""
    try:
        boundary = model.get_layer(backbone.boundary).output
        prefix = keras.Model(model.input, boundary, name="prefix")
        tail = keras.Model(boundary, model.output, name="tail")
    except ValueError:  # no such layer, or a branch leads around it
        raise InputError(
            f"boundary {backbone.boundary}: {backbone.name} cannot be cut there; name a layer that "
            f"all paths go through, such as {backbone.last_conv}"
        ) from None
    prefix.trainable = False
    return prefix, boundary, tail


def trainable_parameters(model: keras.Model) -> int:
    """Count the parameters that training changes."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
