"""Keras, imported quietly and with settings of its own: the one place that imports it.

TensorFlow writes to the terminal while it is imported, before any setting silences it. And a
machine's `keras.json` may name another float type or axis order: other numbers, or none.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fruitveg_tl.utils.errors import InputError, first_line


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back what the block writes to standard error, below Python too, unless it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            written.seek(0)
            os.write(kept, written.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# What TensorFlow has to say on its own account, also about harmless matters; errors are raised.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# OpenVINO, which Keras imports to export a network, reports its use to its makers, unless this
# package of theirs is not installed.
sys.modules.setdefault("openvino_telemetry", None)

try:
    with _silence(), warnings.catch_warnings():
        import keras
except (ImportError, ValueError) as error:
    if "map segment" in str(error) or "allocate memory" in str(error):
        raise MemoryError from None
    wanted = os.environ.get("KERAS_BACKEND") or "the one that ~/.keras/keras.json names"
    raise InputError(
        f"Keras cannot load its backend, {wanted} ({first_line(error)}); install it, or set "
        "KERAS_BACKEND=tensorflow"
    ) from None

keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")

__all__ = ["keras"]
