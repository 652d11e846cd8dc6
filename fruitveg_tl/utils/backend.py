"""Keras, imported quietly and with fixed settings; other modules import it from here.

TensorFlow writes to the terminal during import. A machine's `keras.json` may set another float type
or axis order, which would change results or fail.
"""

import ctypes
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fruitveg_tl.utils.errors import InputError, first_line


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what the block writes to standard error, native code included, unless it fails."""
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


def _keep_freed_memory() -> None:
    """Keep freed memory for the next array: fresh pages from Linux take 15 % of a training step.

    The numbers are those of glibc's malloc.h, see man 3 mallopt.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**28)  # bytes; what is free above that goes back
        mallopt(arena_max, 1)  # threads share what is kept


_keep_freed_memory()
# Silences TensorFlow's log; errors are raised anyway.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Disables OpenVINO's telemetry; Keras imports OpenVINO to export a network.
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
