"""These images through this network, fast: OpenVINO on a processor, Keras elsewhere.

TensorFlow leaves half of a processor unused where layers are small; an inference engine does not
(benchmarks/engine.py). Memory stays flat: of however many images, two batches are held at a time.
"""

import importlib.util
from collections.abc import Iterable, Iterator

import numpy as np

from fruitveg_tl.config import variable
from fruitveg_tl.training.data_parallel import device_count, predict_on_batch
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError

ENGINES = OPENVINO, KERAS = "openvino", "keras"
BATCH = 32
REQUEST = 8  # images of one request to OpenVINO, which works on several requests at a time


def engine() -> str:
    """Return the engine at work: `FRUITVEG_ENGINE`, else OpenVINO on a processor that has it.

    Raises:
        InputError: if the variable names no engine, or one that cannot be used here.
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
    """A network, ready to be asked.

    Args:
        model: any network; float32 for OpenVINO. Keras computes as the model was built.
        precision: that OpenVINO computes in, "float32" or "mixed_bfloat16".
    """

    def __init__(self, model: keras.Model, precision: str = "float32"):
        self.model = model
        one_device = device_count(model) == 1
        self._requests = (
            _Requests(model, precision) if one_device and engine() == OPENVINO else None
        )

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the network's output for each batch, in order.

        The next batch is made while OpenVINO computes the last one.

        Args:
            batches: raw RGB in 0..255 or activations, (b, …) each, any number of them.
        """
        if self._requests is None:
            for batch in batches:
                yield predict_on_batch(self.model, batch)
            return
        started = False
        for batch in batches:
            if started:
                yield self._requests.finish()
            self._requests.start(batch)
            started = True
        if started:
            yield self._requests.finish()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the network's output for all images, (n, …), reading `BATCH` at a time."""
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate(list(self.outputs(parts)))


class _Requests:
    """A network compiled by OpenVINO, and the requests of one batch."""

    def __init__(self, model: keras.Model, precision: str):
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "mixed_bfloat16" else "f32",
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        converted = openvino.convert_model(_traced(model))
        compiled = openvino.Core().compile_model(converted, "CPU", options)
        self.queue = openvino.AsyncInferQueue(compiled)
        self.queue.set_callback(self._keep)
        self.parts: list[np.ndarray | None] = []

    def start(self, batch: np.ndarray) -> None:
        parts = [batch[i : i + REQUEST] for i in range(0, len(batch), REQUEST)]
        self.parts = [None] * len(parts)
        for number, part in enumerate(parts):
            self.queue.start_async({0: part.astype(np.float32)}, number)

    def finish(self) -> np.ndarray:
        self.queue.wait_all()
        return np.concatenate(self.parts)

    def _keep(self, request, number: int) -> None:
        # The request's own memory is used again by the next one.
        self.parts[number] = request.get_output_tensor(0).data.copy()


def _traced(model: keras.Model):
    import tensorflow as tf

    shape = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    return tf.function(lambda x: model(x, training=False)).get_concrete_function(shape)
