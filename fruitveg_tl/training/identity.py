"""Hashes that identify networks and fits, for caches."""

import hashlib
import json
import re
from typing import Any

import numpy as np

from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.storage import sha256_json

# Classes that Keras serializes with their arguments.
_DESCRIBED = (keras.layers.Layer, keras.Loss, keras.Optimizer)


def model_digest(model: keras.Model) -> str:
    """Return the SHA-256 of a network's layers and weights, whatever the layers' names.

    Raises ValueError if a layer cannot be serialized.
    """
    for layer in model.layers:
        _refuse_incomplete(layer)
    text = json.dumps([type(model).__name__, model.get_config()], sort_keys=True)
    # Keras numbers unnamed objects across the whole process.
    operations = getattr(model, "operations", model.layers)  # a Sequential has none
    names = [model.name, *(operation.name for operation in operations)]
    for number, name in enumerate(dict.fromkeys(names)):
        text = text.replace(f'"{name}"', f'"#{number}"')
    text = re.sub(r'"(keras_tensor|input_layer)_?\d*"|"shared_object_id": \d+', '""', text)
    digest = hashlib.sha256(text.encode())
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def fit_key(model: keras.Model, others: Any) -> str | None:
    """Hash all that determines a fit of `model`, compiled and before its first step.

    `others` are all other values that do, for JSON. Returns 16 hexadecimal digits; None if Keras
    cannot serialize a part.
    """
    try:
        parts = [_written(model.optimizer), _written(model.loss), keras.backend.backend()]
        return sha256_json([model_digest(model), parts, others])[:16]
    except (TypeError, ValueError, NotImplementedError):
        return None


def _written(part: Any) -> Any:
    """Serialize an optimizer or a loss, without its automatic name."""
    _refuse_incomplete(part)
    written = keras.saving.serialize_keras_object(part)
    if isinstance(written, dict):
        written["config"].pop("name", None)
    return written


def _refuse_incomplete(part: Any) -> None:
    """Refuse objects whose serialization may be incomplete."""
    if part is None or isinstance(part, str):
        return
    if isinstance(part, keras.layers.Lambda) or not isinstance(part, _DESCRIBED):
        raise ValueError(f"{part}: does not describe itself")
    for kind in type(part).__mro__:
        if kind.__module__.split(".")[0] == "keras" or "get_config" in vars(kind):
            return
        if "__init__" in vars(kind):
            raise ValueError(f"{part}: its class has arguments and no get_config")
