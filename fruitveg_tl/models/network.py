"""The network built on a backbone: one flat Keras graph that can be cut at a boundary.

It maps raw RGB to class probabilities. The layers up to the *boundary* stay frozen, so their output
is computed once; the layers after it (the *upper* part) are fine-tuned. Both parts share their
layers with the whole network. Notebooks 02 to 04 show the same steps one by one.
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
        frozen: raw RGB to the output of the boundary layer.
        pool: the boundary layer's output to pooled features (n, d).
        upper: the boundary layer's output to probabilities.
        body: the backbone, with its parameters in the order of `SourceWeights.values`.
    """

    model: keras.Model
    frozen: keras.Model
    pool: keras.Model
    upper: keras.Model
    body: keras.Model

    @property
    def head(self) -> keras.layers.Dense:
        """The softmax layer on the pooled features."""
        return self.model.get_layer("head")


def build_network(
    backbone: Backbone,
    classes: int,
    size: int,
    weights: Sequence[np.ndarray] | None = None,
    divide_by_255: bool = False,
) -> Network:
    """Build a frozen backbone, global average pooling and a softmax head as one graph.

    Args:
        backbone: the registry entry; InputError if the network cannot be cut at its boundary.
        classes: number of classes.
        size: side of the input images in pixels, at least 32.
        weights: in the order of `get_weights()`; None keeps the random initialisation.
        divide_by_255: instead of the backbone's own preprocessing, a common mistake.
    """
    inputs = keras.Input((size, size, 3), name="rgb_0_255")
    preprocessed = inputs / 255.0 if divide_by_255 else backbone.preprocess_input(inputs)
    body = backbone.constructor(weights=None, include_top=False, input_tensor=preprocessed)
    if weights is not None:
        body.set_weights(weights)
    body.trainable = False
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(body.output)
    output = keras.layers.Dense(classes, "softmax", name="head")(pooled)
    model = keras.Model(inputs, output, name=backbone.key)
    try:
        boundary = model.get_layer(backbone.boundary).output
        frozen = keras.Model(inputs, boundary, name="frozen")
        pool = keras.Model(boundary, pooled, name="pool")
        upper = keras.Model(boundary, output, name="upper")
    except ValueError:  # no such layer, or a branch leads around it
        raise InputError(
            f"boundary {backbone.boundary}: {backbone.name} cannot be cut there; name a layer that "
            f"all paths go through, such as {backbone.last_conv}"
        ) from None
    return Network(model, frozen, pool, upper, body)


def unfreeze(model: keras.Model, batch_norm: bool = False) -> None:
    """Make all layers trainable in place, BatchNorm and its statistics only if `batch_norm`.

    A BatchNorm layer that is not trainable stays in inference mode and keeps its statistics;
    `training=False` alone is not enough in Keras 3 (keras #20285).
    """
    for layer in model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = batch_norm or not is_norm
        if is_norm and batch_norm:
            # Keras' 0.99 and 0.999 need thousands of steps; training here has hundreds.
            layer.momentum = 0.9


def trainable_parameters(model: keras.Model) -> int:
    """Count the trainable parameters."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
