"""These images through this network, fast: OpenVINO on a processor, Keras elsewhere.

TensorFlow leaves half of a processor unused where layers are small; an inference engine does not
(benchmarks/engine.py). Memory stays flat: of however many images, two batches are held at a time.

bfloat16 has the range of float32 and 8 of its 24 bits of precision. Processors and graphics cards
that have instructions for it multiply matrices in it several times as fast.
"""

import importlib.util
import threading
from collections.abc import Iterable, Iterator

import numpy as np

from fruitveg_tl.config import variable
from fruitveg_tl.models.backbones import Backbone
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
    """A network, ready to be asked, by several threads too.

    Args:
        model: any network; float32 for OpenVINO. Keras computes as the model was built.
        precision: that OpenVINO computes in, "float32" or "mixed_bfloat16".
    """

    def __init__(self, model: keras.Model, precision: str = "float32"):
        self.model = model
        self._compiled = _compiled(model, precision) if engine() == OPENVINO else None
        self._idle: list[_Requests] = []
        self._lock = threading.Lock()

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the network's output for each batch, in order.

        The next batch is made while OpenVINO computes the last one.

        Args:
            batches: raw RGB in 0..255 or activations, (b, …) each, any number of them.

        Raises:
            ValueError: if a batch has another shape than the network's input.
        """
        checked = map(self._checked, batches)
        if self._compiled is None:
            for batch in checked:
                with self._lock:
                    output = self.model.predict_on_batch(batch)
                yield output
            return
        try:
            requests = self._idle.pop()
        except IndexError:
            requests = _Requests(self._compiled)
        started = False
        for batch in checked:
            if started:
                yield requests.finish()
            requests.start(batch)
            started = True
        if started:
            yield requests.finish()
        # Whoever fails or stops half-way does not come here: the next caller gets new requests.
        self._idle.append(requests)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the network's output for all images, (n, …), reading `BATCH` at a time."""
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate(list(self.outputs(parts)))

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        wanted = self.model.input_shape[1:]
        if batch.shape[1:] != wanted or not len(batch):
            raise ValueError(f"an array of shape {batch.shape}; the network takes (n, *{wanted})")
        return batch


class _Requests:
    """One caller's requests to a network compiled by OpenVINO."""

    def __init__(self, compiled):
        import openvino

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


def _compiled(model: keras.Model, precision: str):
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "mixed_bfloat16" else "f32",
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    return openvino.Core().compile_model(openvino.convert_model(_traced(model)), "CPU", options)


def _traced(model: keras.Model):
    import tensorflow as tf

    shape = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    return tf.function(lambda x: model(x, training=False)).get_concrete_function(shape)


def training_precision(backbone: Backbone) -> str:
    """Return the dtype policy that a backbone is trained in on this machine."""
    return runtime.fast_precision(backbone.bfloat16)


def frozen_precision(backbone: Backbone) -> str:
    """Return the dtype policy in which training images go through the frozen part here."""
    if not backbone.frozen_bfloat16:
        return "float32"
    # In OpenVINO every backbone is faster in bfloat16 (benchmarks/engine.py).
    by_openvino = engine() == OPENVINO
    return runtime.fast_precision(by_openvino or backbone.bfloat16)


def in_precision(model: keras.Model, policy: str) -> keras.Model:
    """Return a copy of a network that computes in another number type; its weights stay float32.

    The layer called "head", a softmax, stays in float32: probabilities near 0 and 1 need it. Keras
    has no effect of a new dtype policy on layers that were called before, hence a copy.

    Args:
        model: a functional model.
        policy: "float32" or "mixed_bfloat16".

    Returns:
        a model with weights of its own, in the order of `model.get_weights()`.
    """

    def copied(layer: keras.Operation) -> keras.Operation:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.Layer) and layer.name != "head":
            settings["dtype"] = policy
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy
