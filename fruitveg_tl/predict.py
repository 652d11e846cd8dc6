"""Answers of a saved network for photographs of one's own."""

import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from fruitveg_tl import config
from fruitveg_tl.errors import InputError
from fruitveg_tl.images import decode


def newest_run() -> Path:
    """Return the folder of the run whose network was saved last.

    Raises:
        InputError: if no run on this machine has one.
    """
    models = config.RESULTS_DIR.glob("*/model.keras")
    newest = max(models, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(
            f"{config.RESULTS_DIR}: no saved network; train one with «python -m fruitveg_tl run»"
        )
    return newest.parent


def predict(paths: Sequence[Path], run: Path) -> list[pd.Series]:
    """Classify photographs with a run's whole network.

    Args:
        paths: image files.
        run: a run folder with `model.keras`.

    Returns:
        for each file, the probability of every class, highest first.

    Raises:
        InputError: if the folder has no network or a photograph cannot be decoded.
    """
    file = run / "model.keras"
    if not file.is_file():
        raise InputError(
            f"{file}: no such file (networks are not kept in Git); "
            "train it with «python -m fruitveg_tl run --force»"
        )
    settings = json.loads((run / "config.json").read_text())
    classes = json.loads((run / "provenance.json").read_text())["dataset"]["classes"]
    pixels = np.stack([decode(path, settings["size"]) for path in paths])
    model = keras.saving.load_model(file, compile=False)
    probabilities = model.predict_on_batch(pixels.astype(np.float32))
    return [pd.Series(p, index=classes).sort_values(ascending=False) for p in probabilities]
