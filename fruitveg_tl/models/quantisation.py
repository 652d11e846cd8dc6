"""A backbone's parameters in a quarter of their size: kernels in 8 bits, the rest in 16."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fruitveg_tl.utils.storage import new_file


def save(file: Path, values: Sequence[np.ndarray]) -> None:
    """Store parameters, rounded, as one compressed NumPy archive.

    A kernel (four axes) becomes int8 with one scale for each output channel, its largest absolute
    value over 127; a depthwise kernel's channels are its third axis. Everything else becomes
    float16.

    Args:
        file: its name ends in .npz.
        values: in the order of `get_weights()`.

    Raises:
        ValueError: if a value is too large for float16.
    """
    arrays = {}
    for i, value in enumerate(values):
        if value.ndim == 4:
            axes = (0, 1, 3) if value.shape[3] == 1 else (0, 1, 2)
            scale = np.abs(value).max(axes, keepdims=True) / 127
            scale = np.where(scale == 0, 1, scale).astype(np.float32)
            arrays[f"{i:03d}-kernel"] = np.rint(value / scale).astype(np.int8)
            arrays[f"{i:03d}-scale"] = scale
        else:
            if np.abs(value).max() > np.finfo(np.float16).max:
                raise ValueError(f"parameter {i} is too large for float16")
            arrays[f"{i:03d}-value"] = value.astype(np.float16)
    with new_file(file) as temporary:
        np.savez_compressed(temporary, **arrays)


def load(file: Path) -> list[np.ndarray]:
    """Return what `save` stored, as float32, in the same order.

    Raises:
        ValueError, OSError, KeyError: if the file is not one of `save`'s.
    """
    with np.load(file, allow_pickle=False) as archive:
        values = []
        for name in sorted(archive.files):
            number, kind = name.split("-")
            if kind == "kernel":
                values.append(archive[name].astype(np.float32) * archive[f"{number}-scale"])
            elif kind == "value":
                values.append(archive[name].astype(np.float32))
    return values
