"""The weights of a backbone.

Order: an explicit file; the folder `FRUITVEG_WEIGHTS` if set; Keras' cache; Keras' download; if
that fails, the bundled weights (see data/weights/README.md). Random initialisation is only used on
request, and every result from it is labelled `RANDOM`.
"""

import hashlib
import json
import socket
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fruitveg_tl import config
from fruitveg_tl.config import PATHS
from fruitveg_tl.models.backbones import BUNDLED, RANDOM, Backbone
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import new_file, own_folder, sha256_file

# Names of files in tables, by SHA-256; other files appear under their own name.
KNOWN = {
    "0fb372913af17abb20975bb25ea6559dbd8e4ea19f8911b8d5d62453bd642e5e": "ImageNet (torchvision)",
    "b3d1ed2b9efeb2b61c2a80f9f03cd62ffffd56c243129e87902d9c344618ceee": "ImageNet (pruned, 8 bit)",
    "4a42a1aca6a8d83c92974774bdf6ef131cda2219e65b298c357687bf055315fe": "ImageNet (8 bit)",
}
STATISTICS_BATCH = 8  # images: each layer's output is held
TIMEOUT = 20  # seconds without an answer before a download counts as unreachable


@dataclass(frozen=True)
class SourceWeights:
    """Parameters to start from.

    Attributes:
        values: in the order of `Backbone.constructor(include_top=False).get_weights()`.
        source: their name in tables: "ImageNet (Keras)", another of `KNOWN`, a file's name,
            `BUNDLED` or `RANDOM`.
        file, sha256: name and SHA-256 of their file; None if random.
        digest: SHA-256 of the values, for cache keys.
        path: of the file, if the user gave it.
    """

    values: Sequence[np.ndarray]
    source: str
    file: str | None
    sha256: str | None
    digest: str
    path: str | None = None


class Unreachable(InputError):
    """No pre-trained weights on disk, and the server does not answer."""


def resolve(backbone: Backbone, choice: str = "auto", seed: int = 0) -> SourceWeights:
    """Find and load a backbone's weights; `seed` is that of the random initialisation.

    `choice` is "auto" for the order above, "bundled", "random", or a file: a bundled one, or one
    that `keras.applications` accepts for `include_top=False`. Raises InputError if the file is
    missing, damaged or of another architecture. Raises Unreachable if "auto" finds nothing on disk,
    cannot download, and has no bundled weights.
    """
    if choice == "random":
        values = _random(backbone, seed)
        return SourceWeights(values, RANDOM, None, None, _digest(values))
    if choice == "bundled":
        return _from_file(backbone, bundled_file(backbone), BUNDLED)
    file = _in_folder(backbone) if choice == "auto" else Path(choice).expanduser()
    if file:
        path = None if choice == "auto" else str(file.resolve())
        return replace(_from_file(backbone, file), path=path)
    before = (config.keras_home() / "models" / backbone.weights_name).exists()
    try:
        file = _keras_file(backbone)
    except Unreachable:
        if not bundled_file(backbone).exists():
            raise
        return resolve(backbone, "bundled")
    try:
        return _from_file(backbone, file, "ImageNet (Keras)")
    except InputError as error:  # Keras publishes no checksum for one backbone
        if before:
            raise
        file.unlink()
        raise InputError(f"{error}; the download was deleted, run again") from None


def keras_file(backbone: Backbone, source: SourceWeights) -> Path:
    """Return a file of weights for the argument `weights` of `keras.applications`.

    The values of `source` are written below `data/cache/weights`, once.
    """
    name = f"{backbone.key}-{source.digest[:16]}.weights.h5"
    file = own_folder(PATHS.cache / "weights") / name
    if not file.exists():
        model = backbone.constructor(weights=None, include_top=False)
        model.set_weights(source.values)
        with new_file(file) as temporary:
            model.save_weights(temporary)
    return file


def bundled_file(backbone: Backbone) -> Path:
    """Return the file of a backbone's bundled weights."""
    return PATHS.weights / f"{backbone.key}_tiny_imagenet_notop.npz"


def card(backbone: Backbone) -> dict:
    """Return the model card of the bundled weights: images, recipe, hash, accuracy, licence."""
    return json.loads(bundled_file(backbone).with_suffix(".json").read_text())


def estimate_batch_norm_statistics(
    backbone: Backbone, values: Sequence[np.ndarray], images: np.ndarray
) -> list[np.ndarray]:
    """Return `values`, which are random, with the BatchNorm statistics of the images.

    With the initial mean 0 and variance 1, the signal vanishes or explodes in inference mode. As in
    PyTorch's `update_bn`, moments are accumulated over batches, so memory use is constant. `images`
    are a few hundred training images (n, size, size, 3), RGB in 0..255.
    """
    model = backbone.constructor(weights=None, include_top=False, input_shape=images.shape[1:])
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    if not norms:
        return list(values)
    model.set_weights(values)
    for norm in norms:
        norm.momentum = 0.0  # the moving statistics are those of the last batch
    moments = [[0.0, 0.0] for _ in norms]  # sums of x and x², over the images
    for start in range(0, len(images), STATISTICS_BATCH):
        batch = images[start : start + STATISTICS_BATCH].astype(np.float32)
        model(backbone.preprocess_input(batch), training=True)
        for norm, moment in zip(norms, moments, strict=True):
            mean, variance = (
                keras.ops.convert_to_numpy(x).astype(np.float64)
                for x in (norm.moving_mean, norm.moving_variance)
            )
            moment[0] += len(batch) * mean
            moment[1] += len(batch) * (variance + mean**2)
    for norm, (first, second) in zip(norms, moments, strict=True):
        mean = first / len(images)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(np.maximum(second / len(images) - mean**2, 0))
    return model.get_weights()


def _random(backbone: Backbone, seed: int) -> list[np.ndarray]:
    """Draw kernels by He et al. (2015): with Keras' Glorot default VGG16's signal vanishes."""
    keras.utils.set_random_seed(seed)
    model = backbone.constructor(weights=None, include_top=False)
    for number, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.Conv2D):
            initializer = keras.initializers.HeNormal(1000 * seed + number)
            layer.kernel.assign(initializer(layer.kernel.shape))
    return model.get_weights()


def _in_folder(backbone: Backbone) -> Path | None:
    folder = config.variable("WEIGHTS")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise InputError(f"FRUITVEG_WEIGHTS={folder}: no such folder; correct or unset it")
    # Keras' name first, then the usual name in the Keras 3 format.
    names = backbone.weights_name, f"{backbone.module}_imagenet_notop.weights.h5"
    if file := next((file for name in names if (file := Path(folder, name)).exists()), None):
        return file
    raise InputError(
        f"FRUITVEG_WEIGHTS={folder}: no weights of {backbone.name} there; put them there as "
        f"{' or '.join(names)}, or ask for --weights bundled or random"
    )


def _keras_file(backbone: Backbone) -> Path:
    cache = config.keras_home()
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    try:
        with _timeout(TIMEOUT):
            return Path(
                keras.utils.get_file(
                    backbone.weights_name,
                    backbone.weights_url,
                    cache_dir=str(cache),
                    cache_subdir="models",
                    file_hash=backbone.weights_md5,
                )
            )
    except Exception as error:  # get_file wraps every network failure in a bare Exception
        raise Unreachable(
            f"{backbone.name}: no pre-trained weights on disk and the download failed ({error}); "
            f"put {backbone.weights_name} into a folder and set FRUITVEG_WEIGHTS to it, "
            "or ask for --weights random"
        ) from None


@contextmanager
def _timeout(seconds: float):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_file(backbone: Backbone, file: Path, source: str | None = None) -> SourceWeights:
    if not file.is_file():
        raise InputError(f"{file}: no such weights file; correct the path")
    model = backbone.constructor(weights=None, include_top=False)
    try:
        if file.suffix == ".npz":
            model.set_weights(_read_bundled(file))
        else:
            model.load_weights(file)
    except Exception as error:  # NumPy, h5py and Keras raise many kinds
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file}: not weights of {backbone.name} without top ({reason}); "
            f"delete it or give the file that Keras names {backbone.weights_name}"
        ) from None
    values = model.get_weights()
    sha256 = sha256_file(file)
    source = source or KNOWN.get(sha256, file.name)
    return SourceWeights(values, source, file.name, sha256, _digest(values))


def _read_bundled(file: Path) -> list[np.ndarray]:
    """Read kernels from 8 bits with a scale per output channel, and other values from 16 bits."""
    values = []
    with np.load(file, allow_pickle=False) as archive:
        for name in sorted(archive.files):
            number, kind = name.split("-")
            if kind == "kernel":
                values.append(archive[name].astype(np.float32) * archive[f"{number}-scale"])
            elif kind == "value":
                values.append(archive[name].astype(np.float32))
    return values


def _digest(values: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
