"""Several devices of one machine: each takes a part of every batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError


@contextmanager
def data_parallel(devices: int) -> Iterator[None]:
    """Build and train the networks of the block on several devices, as one would on one.

    The weights are mirrored, the gradients averaged (`tf.distribute.MirroredStrategy`), so the
    losses are those of one device up to rounding.

    Args:
        devices: how many; the first graphics cards, or without any the first processor devices.

    Raises:
        InputError: if there are not so many, or another backend than TensorFlow is at work.
    """
    if devices == 1:
        yield
        return
    if keras.backend.backend() != "tensorflow":
        raise InputError("several devices are used through TensorFlow only; unset KERAS_BACKEND")
    import tensorflow as tf

    there = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if not 1 <= devices <= len(there):
        names = ", ".join(device.name.removeprefix("/device:") for device in there)
        raise InputError(f"{devices} devices asked for; TensorFlow sees {len(there)}: {names}")
    with tf.distribute.MirroredStrategy([device.name for device in there[:devices]]).scope():
        yield


def split(model: keras.Model, *batch: np.ndarray) -> tuple:
    """Cut a batch into one equal part for each device of the model.

    Where that cannot be done evenly every device takes the whole batch, which gives the same
    gradients.
    """
    devices = device_count(model)
    if devices == 1 or len(batch[0]) % devices:
        return batch
    import tensorflow as tf

    def part_of(array: np.ndarray):
        parts = np.split(array, devices)
        return model.distribute_strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    return tuple(part_of(array) for array in batch)


def predict_on_batch(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Return the model's output for one batch, shape (n, …), whatever the number of devices."""
    (parts,) = split(model, x)
    # Devices that all took the whole batch give its output once each.
    return keras.ops.convert_to_numpy(model.predict_on_batch(parts))[: len(x)]


def device_count(model: keras.Model) -> int:
    """Return on how many devices a model was built."""
    if keras.backend.backend() != "tensorflow":
        return 1
    return model.distribute_strategy.num_replicas_in_sync
