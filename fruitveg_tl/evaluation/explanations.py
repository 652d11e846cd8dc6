"""Grad-CAM (Selvaraju et al. 2017) and a deletion test of its maps."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fruitveg_tl.models.backbones import Backbone
from fruitveg_tl.utils.backend import keras


def gradcam(
    model: keras.Model, backbone: Backbone, pixels: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Return Grad-CAM heat maps of one class per image: float32 (n, size, size) in 0..1.

    For global average pooling and one dense layer, the channel weights are the dense layer's
    (Selvaraju et al., section 3.1). So Grad-CAM needs no backward pass here. Each map is scaled to
    maximum 1 before it is enlarged; it is all zero if no region supports the class. `model` is a
    whole network, `pixels` are raw RGB (n, size, size, 3) in 0..255, `classes` are indices (n,).
    """
    reader = keras.Model(model.input, model.get_layer(backbone.last_conv).output)
    features = keras.ops.convert_to_numpy(reader.predict_on_batch(pixels.astype(np.float32)))
    kernel = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    maps = np.maximum(np.einsum("nhwc,cn->nhw", features, kernel[:, classes]), 0)
    highest = maps.max((1, 2), keepdims=True)
    maps = np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)
    large = keras.ops.image.resize(maps[..., None], pixels.shape[1:3])
    return keras.ops.convert_to_numpy(large)[..., 0]


def deletion(
    model: keras.Model,
    pixels: np.ndarray,
    maps: np.ndarray,
    fractions: Sequence[float],
) -> np.ndarray:
    """Predict images with growing fractions of their highest-map pixels blurred.

    This is the deletion test of Petsiuk et al. (2018). Takes raw RGB (n, size, size, 3) in 0..255
    and maps (n, size, size); returns probabilities (fractions, n, classes).
    """
    clear = pixels.astype(np.float32)
    size = pixels.shape[1]
    blurred = ndimage.gaussian_filter(clear, (0, size / 10, size / 10, 0))
    order = np.argsort(np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable"), axis=1)
    rank = order.reshape(maps.shape)[..., None] / size**2
    images = (np.where(rank < fraction, blurred, clear) for fraction in fractions)
    return np.stack([model.predict(image, verbose=0) for image in images])
