"""Classify your own images with a saved network."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl import config, studies
from fruitveg_tl.data.folders import images_below
from fruitveg_tl.data.images import decode
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.studies import Run
from fruitveg_tl.training.inference import BATCH, Inference
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.progress import progress


def find_images(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images that files, folders (recursively) and glob patterns name.

    Returns:
        the image files, each once, in the order given; one line for each name without images.
    """
    files, problems = {}, []
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            found = images_below(path)
        elif path.exists():
            found = [path]
        else:
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (it may be absolute)
            found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            problems.append(f"{printable(path)}: no image there; give files, folders or patterns")
        files |= dict.fromkeys(found)
    return list(files), problems


def choose_run(name: str | None = None) -> Run:
    """Return the finished run to predict with.

    Args:
        name: a run's folder, or its name below `data/runs`; or a backbone's name, for its run with
            the lowest validation loss; None for the network saved last. Ablations come last.

    Raises:
        InputError: if no such run has a saved network.
    """
    if name is not None and name.lower() not in BACKBONES:
        folder = Path(name) if Path(name).is_dir() else config.PATHS.runs / name
        if not (folder / "runs.csv").is_file():
            raise InputError(
                f"{folder}: no finished run here; start it with «python -m fruitveg_tl run»"
            )
        return next(iter(studies.read_study(folder)))
    runs = [
        run
        for run in studies.own_runs()
        if (run.folder / studies.MODEL).exists()
        and (name is None or run.config.backbone == name.lower())
    ]
    if not runs:
        raise InputError(
            f"{config.PATHS.runs}: no saved network{f' of {name}' if name else ''}; train one "
            f"with «python -m fruitveg_tl run{f' --backbones {name.lower()}' if name else ''}»"
        )
    # Ablations are trained for the appendices.
    runs = [run for run in runs if not _is_ablation(run)] or runs
    if name is None:
        return max(runs, key=lambda run: (run.folder / studies.MODEL).stat().st_mtime)
    return min(runs, key=_validation_loss)


def _is_ablation(run: Run) -> bool:
    values = run.config.to_dict()
    declared = {field.name for field in config.settings(ablations=True)}
    return bool(declared & values.keys()) or pd.notna(run.row["images per class"])


def _validation_loss(run: Run) -> float:
    # Not from the history: the kept epoch may not have the lowest loss.
    return metrics.evaluate(*run.validation(run.stages[-1]))["loss"]


def predict(paths: Sequence[str | Path], run: Run) -> Iterator[tuple[Path, pd.Series]]:
    """Classify images with a run's network, a batch at a time.

    Args:
        paths: image files.
        run: the run to predict with.

    Yields:
        each decoded file and the probability of every class, highest first.

    Raises:
        TypeError: if something other than a path is given.
        InputError: at the end, with a line for each image that cannot be decoded; at once if
            `studies.Run.load_model` fails.
    """
    paths = [Path(path) for path in paths]
    network = Inference(run.load_model())
    problems: list[str] = []
    answered: list[Path] = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(paths), BATCH):
            pixels = []
            for path in paths[start : start + BATCH]:
                try:
                    pixels.append(decode(path, run.config.size, run.config.crop))
                    answered.append(path)
                except InputError as error:
                    problems.append(str(error))
            if pixels:
                yield np.stack(pixels)

    number = 0
    with progress("predict", len(paths)) as bar:
        for probabilities in network.outputs(batches()):
            for row in probabilities:
                yield answered[number], pd.Series(row, run.classes).sort_values(ascending=False)
                number += 1
                bar.update()
    if problems:
        raise InputError("\n".join(problems))
