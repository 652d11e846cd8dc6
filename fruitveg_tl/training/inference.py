"""Fast inference: OpenVINO on a processor, Keras elsewhere.

With small layers, TensorFlow leaves half of a processor unused; OpenVINO does not
(benchmarks/engine.py). Memory use is constant: two batches at a time.

bfloat16 has the range of float32 and 8 of its 24 bits of precision. Hardware that supports it
multiplies matrices several times as fast.
"""

import importlib.util
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fruitveg_tl.config import variable
from fruitveg_tl.models import compiled
from fruitveg_tl.models.backbones import Backbone
from fruitveg_tl.models.compiled import BATCH, Compiled
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError

if TYPE_CHECKING:
    import openvino

ENGINES = OPENVINO, KERAS = "openvino", "keras"


def engine() -> str:
    """Return the engine: `FRUITVEG_ENGINE`, else OpenVINO if installed and there is no GPU.

    Raises InputError if `FRUITVEG_ENGINE` is unknown or cannot be used here.
    """
    able = keras.backend.backend() == "tensorflow" and importlib.util.find_spec("openvino")
    chosen = variable("ENGINE") or (OPENVINO if able and not runtime.gpus() else KERAS)
    if chosen not in ENGINES:
        raise InputError(f"FRUITVEG_ENGINE={chosen}: choose {' or '.join(ENGINES)}")
    if chosen == OPENVINO and not able:
        raise InputError(
            "FRUITVEG_ENGINE=openvino: it needs the package openvino and Keras on TensorFlow; "
            "install it and unset KERAS_BACKEND, or unset FRUITVEG_ENGINE"
        )
    return chosen


class Inference:
    """A thread-safe network for inference.

    Args:
        model: any network; float32 for OpenVINO.
        precision: of OpenVINO, "float32" or "mixed_bfloat16"; Keras uses the model's own.
    """

    def __init__(self, model: keras.Model, precision: str = "float32"):
        self.model = model
        by_openvino = engine() == OPENVINO
        self._compiled = Compiled(to_openvino(model), precision) if by_openvino else None
        self._lock = threading.Lock()

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the output for each batch (b, …), raw RGB in 0..255 or activations, in order.

        Raises ValueError if the shape of a batch differs from the network's input.
        """
        checked = map(self._checked, batches)
        if self._compiled is not None:
            yield from self._compiled.outputs(checked)
            return
        for batch in checked:
            with self._lock:
                output = self.model.predict_on_batch(batch)
            yield output

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the network's output for all images, (n, …), `BATCH` at a time."""
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate(list(self.outputs(parts)))

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        wanted = self.model.input_shape[1:]
        if batch.shape[1:] != wanted or not len(batch):
            raise ValueError(f"an array of shape {batch.shape}; the network takes (n, *{wanted})")
        return batch


def to_openvino(model: keras.Model) -> "openvino.Model":
    """Convert a float32 network; the backend must be TensorFlow."""
    import openvino
    import tensorflow as tf

    shape = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(shape)
    return openvino.convert_model(traced)


def save_openvino(model: keras.Model, folder: Path) -> list[Path]:
    """Write a float32 network for OpenVINO; return its files, none if another engine is in use."""
    if engine() != OPENVINO:
        return []
    import openvino

    file = folder / compiled.FILE
    openvino.save_model(to_openvino(model), file, compress_to_fp16=False)
    return [file, file.with_suffix(".bin")]


def training_precision(backbone: Backbone) -> str:
    """Return the dtype policy for training a backbone on this machine."""
    return runtime.fast_precision(backbone.bfloat16)


def frozen_precision(backbone: Backbone) -> str:
    """Return the dtype policy of the frozen part for training images on this machine."""
    if not backbone.frozen_bfloat16:
        return "float32"
    # In OpenVINO every backbone is faster in bfloat16 (benchmarks/engine.py).
    by_openvino = engine() == OPENVINO
    return runtime.fast_precision(by_openvino or backbone.bfloat16)


def in_precision(model: keras.Model, policy: str) -> keras.Model:
    """Return a copy of a functional network with another dtype policy; its weights stay float32.

    The softmax layer "head" stays in float32, for probabilities near 0 and 1. A copy is necessary:
    Keras ignores a new policy on layers that were called before.
    """

    def copied(layer: keras.Operation) -> keras.Operation:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.Layer) and layer.name != "head":
            settings["dtype"] = policy
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy
