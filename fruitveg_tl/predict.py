"""Classify images of one's own with a saved network."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl import config, results
from fruitveg_tl.data.images import decode
from fruitveg_tl.training.inference import BATCH, Inference
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


def predict(paths: Sequence[Path], run: Path) -> Iterator[pd.Series]:
    """Classify images with a run's whole network, a batch at a time.

    Args:
        paths: image files.
        run: a run folder, or its name below `data/results`.

    Yields:
        for each file, the probability of every class, highest first.

    Raises:
        InputError: if an image cannot be decoded; see also `results.Run.load_model`.
    """
    trained = results.load(run)
    size, crop = trained.config.size, trained.config.crop
    batches = (
        np.stack([decode(path, size, crop) for path in some])
        for some in (paths[i : i + BATCH] for i in range(0, len(paths), BATCH))
    )
    for probabilities in Inference(trained.load_model()).outputs(batches):
        for row in probabilities:
            yield pd.Series(row, index=trained.classes).sort_values(ascending=False)
