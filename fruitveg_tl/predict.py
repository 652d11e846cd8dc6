"""Classify images of one's own with a saved network."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl import config, results
from fruitveg_tl.data.images import decode
from fruitveg_tl.utils.errors import InputError


def newest_run() -> Path:
    """Return the folder of the run whose network was saved last.

    Networks that break the study's protocol on purpose are for the questions of the last chapter
    and passed over.

    Raises:
        InputError: if no run on this machine has one.
    """
    models = (
        file
        for file in config.PATHS.results.glob("*/model.keras")
        if not config.in_words(
            json.loads((file.parent / "config.json").read_text()), config.ABLATION
        )
    )
    newest = max(models, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(
            f"{config.PATHS.results}: no saved network; train one with «python -m fruitveg_tl run»"
        )
    return newest.parent


def predict(paths: Sequence[Path], run: Path) -> list[pd.Series]:
    """Classify images with a run's whole network.

    Args:
        paths: image files.
        run: a run folder, or its name below `data/results`.

    Returns:
        for each file, the probability of every class, highest first.

    Raises:
        InputError: if an image cannot be decoded; see also `results.Run.load_model`.
    """
    trained = results.load(run)
    pixels = np.stack([decode(path, trained.config.size, trained.config.crop) for path in paths])
    probabilities = trained.load_model().predict_on_batch(pixels.astype(np.float32))
    return [pd.Series(p, index=trained.classes).sort_values(ascending=False) for p in probabilities]
