"""Sanity checks for Grad-CAM: weight randomisation and deletion."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage, stats

from fruitveg_tl.evaluation.gradcam import gradcam
from fruitveg_tl.models.backbones import Backbone
from fruitveg_tl.utils.backend import keras

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def randomised(
    model: keras.Model, backbone: Backbone, seed: int = 0
) -> Iterator[tuple[str, keras.Model]]:
    """Shuffle a network's weights, from its end to its beginning (Adebayo et al. 2018).

    Each kernel's values stay, their places do not. Biases and
    BatchNorm stay, so that the activations keep about their size.

    Args:
        model: a whole network from `network.build_network` or `model.keras`; it is not changed.
        backbone: its registry entry.
        seed: of the shuffle.

    Yields:
        what is shuffled so far ("nothing", "head", "fine-tuned layers", "everything"), and
        such a network; the next one reuses it.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    rng = np.random.default_rng(seed)
    names = [layer.name for layer in copy.layers]
    boundary, head = names.index(backbone.boundary), names.index("head")
    yield "nothing", copy
    parts = {
        "head": range(head, head + 1),
        "fine-tuned layers": range(boundary + 1, head),
        "everything": range(boundary + 1),
    }
    for name, part in parts.items():
        for layer in (copy.layers[i] for i in part):
            layer.set_weights(
                [rng.permuted(w.ravel()).reshape(w.shape) if w.ndim > 1 else w
                 for w in layer.get_weights()]
            )  # fmt: skip
        yield name, copy


def sanity(
    model: keras.Model, backbone: Backbone, pixels: np.ndarray, classes: np.ndarray
) -> dict[str, float]:
    """Compare the maps of a network with those of the same network made to forget.

    Args:
        model: a whole network.
        backbone: its registry entry.
        pixels: raw RGB (n, size, size, 3) in 0..255.
        classes: class index to explain for each image, shape (n,).

    Returns:
        what was forgotten (see `randomised`) to the rank correlation of the maps (Spearman, mean
        over the images), 1 where nothing was. A map that shows what the network knows loses it; one
        that merely finds edges keeps it.
    """
    maps = {
        name: gradcam(network, backbone, pixels, classes)
        for name, network in randomised(model, backbone)
    }
    return {name: _correlation(maps["nothing"], changed) for name, changed in maps.items()}


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    pairs = zip(first, second, strict=True)
    # A map that is the same everywhere ranks nothing: it agrees with no other.
    correlations = [
        stats.spearmanr(a.ravel(), b.ravel()).statistic if np.ptp(a) and np.ptp(b) else 0.0
        for a, b in pairs
    ]
    return float(np.mean(correlations))


def deletion(
    model: keras.Model,
    pixels: np.ndarray,
    maps: np.ndarray,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """Blur an image where a map is highest, more and more, and ask again (Petsiuk et al. 2018).

    Args:
        model: a whole network.
        pixels: raw RGB (n, size, size, 3) in 0..255.
        maps: (n, size, size), the order in which places are blurred, highest first.
        fractions: of the pixels, blurred together.

    Returns:
        probabilities of shape (fractions, n, classes).
    """
    clear = pixels.astype(np.float32)
    size = pixels.shape[1]
    blurred = ndimage.gaussian_filter(clear, (0, size / 10, size / 10, 0))
    order = np.argsort(np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable"), axis=1)
    rank = order.reshape(maps.shape)[..., None] / size**2
    images = (np.where(rank < fraction, blurred, clear) for fraction in fractions)
    return np.stack([model.predict(image, verbose=0) for image in images])


def random_maps(count: int, cells: int, size: int, seed: int = 0) -> np.ndarray:
    """Return maps as coarse as Grad-CAM's that know nothing: the baseline of a deletion curve.

    Args:
        count: number of maps.
        cells: per side, as many as the last convolution has places.
        size: side of the images in pixels.
        seed: of the random numbers.

    Returns:
        (count, size, size) in 0..1.
    """
    cells = np.random.default_rng(seed).random((count, cells, cells, 1), np.float32)
    return keras.ops.convert_to_numpy(keras.ops.image.resize(cells, (size, size)))[..., 0]
