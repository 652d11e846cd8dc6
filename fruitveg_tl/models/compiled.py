"""A network compiled by OpenVINO for a processor; it needs neither Keras nor TensorFlow."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino

# Of a run's folder: its network for OpenVINO, and the confidence from which answers are sure.
FILE, CONFIDENCE = "model.xml", "confidence.json"
BATCH = 32
REQUEST = 8  # images per OpenVINO request; several requests run in parallel


class Compiled:
    """A thread-safe network.

    Args:
        network: an OpenVINO model, or its `.xml` file.
        precision: "float32" or "mixed_bfloat16".
    """

    def __init__(self, network: "openvino.Model | Path", precision: str = "float32"):
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "mixed_bfloat16" else "f32",
            # A single image takes half as long as with THROUGHPUT; a batch takes no longer.
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled = openvino.Core().compile_model(network, "CPU", options)
        self._idle: list[_Requests] = []

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the output (b, …) for each batch, in order; the next one is prepared meanwhile."""
        try:
            requests = self._idle.pop()
        except IndexError:
            requests = _Requests(self._compiled)
        started = False
        for batch in batches:
            if started:
                yield requests.finish()
            requests.start(batch)
            started = True
        if started:
            yield requests.finish()
        # Not reached after a failure or an early stop: the next caller gets new requests.
        self._idle.append(requests)


class _Requests:
    """One caller's requests to a compiled network."""

    def __init__(self, compiled: "openvino.CompiledModel"):
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
        # The next request reuses the memory of this one.
        self.parts[number] = request.get_output_tensor(0).data.copy()
