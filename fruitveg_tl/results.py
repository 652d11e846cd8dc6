"""Finished runs on disk: stored in one piece, found by what they are, read back.

One folder per run below `data/results/`, written in one atomic step when the run is over:

    config.json               the RunConfig
    provenance.json           images, weights, versions, hardware, commit, times
    history.csv               one row per stage and epoch
    metrics.json              per stage: `metrics.evaluate` on the test split
    classification_report.csv `metrics.classification_report` of the last stage
    test.csv                  path and true label of every test image
    probabilities-STAGE.npy   float32 (n_test, classes), rows as in test.csv
    val.csv, validation-STAGE.npy   the same for the validation split
    classes.json              the classes, in the order of the network's outputs
    preprocess.py             `load_image`: an image file to the pixels that the network takes
    model.keras               the whole network, raw RGB in (not kept in Git)
    model.keras.sha256        its hash, as `sha256sum -c` reads it (not kept in Git)
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from csv import QUOTE_NONNUMERIC
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fruitveg_tl import config
from fruitveg_tl.config import PATHS
from fruitveg_tl.data import preprocess
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.weights import MAKESHIFT
from fruitveg_tl.profiles import ablations_in_words
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError, first_line, printable
from fruitveg_tl.utils.progress import note
from fruitveg_tl.utils.replay import command
from fruitveg_tl.utils.storage import new_folder, sha256_file, write_json

MODEL, MODEL_HASH = "model.keras", "model.keras.sha256"
FILES = {"test": "probabilities", "val": "validation"}  # split to the first word of its arrays


@dataclass(frozen=True)
class Outcome:
    """Everything that a run leaves behind.

    Attributes:
        config: what was run.
        provenance: where it comes from.
        history: one record per stage and epoch.
        images: per split ("test", "val"), path and label of every image.
        probabilities: per split and stage, shape (n, classes).
        scores: per stage, `metrics.evaluate` on the test split.
        report: `metrics.classification_report` of the last stage.
        model: the whole network.
    """

    config: config.RunConfig
    provenance: dict
    history: list[dict]
    images: dict[str, pd.DataFrame]
    probabilities: dict[str, dict[str, np.ndarray]]
    scores: dict[str, dict[str, float]]
    report: pd.DataFrame
    model: keras.Model


def save(folder: Path, outcome: Outcome) -> None:
    """Store a finished run; `folder` appears whole or not at all."""
    with new_folder(folder) as temporary:
        write_json(temporary / "config.json", outcome.config.to_dict())
        write_json(temporary / "provenance.json", outcome.provenance)
        write_json(temporary / "metrics.json", outcome.scores)
        write_json(temporary / "classes.json", outcome.provenance["dataset"]["classes"])
        pd.DataFrame(outcome.history).to_csv(temporary / "history.csv", index=False)
        # In quotes a name may hold a line break, of either kind.
        outcome.report.to_csv(temporary / "classification_report.csv", quoting=QUOTE_NONNUMERIC)
        for split, stages in outcome.probabilities.items():
            table, index_file = outcome.images[split], temporary / f"{split}.csv"
            table.to_csv(index_file, index=False, quoting=QUOTE_NONNUMERIC)
            for stage, array in stages.items():
                file = temporary / f"{FILES[split]}-{slug(stage)}.npy"
                np.save(file, array.astype(np.float32))
        outcome.model.save(temporary / MODEL)
        shutil.copyfile(preprocess.__file__, temporary / "preprocess.py")
        (temporary / MODEL_HASH).write_text(f"{sha256_file(temporary / MODEL)}  {MODEL}\n")


def find(identity: str) -> Path | None:
    """Return the folder of the finished run with this identity, whatever its images are called.

    Args:
        identity: see `inputs.Inputs.identity`.
    """
    files = sorted(PATHS.results.glob(f"*-{identity}/metrics.json"))
    return files[0].parent if files else None


@dataclass(frozen=True)
class Run:
    """A finished run, read back.

    Attributes:
        folder: where it is.
        config, provenance: what `run.train_and_evaluate` stored.
        history: one row per stage and epoch.
        scores: for each stage, linear probe first, what `metrics.evaluate` gave on the test split.
        test: path and label of every test image.
    """

    folder: Path
    config: config.RunConfig
    provenance: dict
    history: pd.DataFrame
    scores: dict[str, dict[str, float]]
    test: pd.DataFrame

    @property
    def backbone_name(self) -> str:
        """The backbone's name as tables say it, e.g. "ResNet50"."""
        return BACKBONES[self.config.backbone].name

    @property
    def weights(self) -> str:
        """What training started from, as tables say it."""
        return self.provenance["weights"]["source"]

    @property
    def label(self) -> str:
        """The backbone's name, and what it started from where that is makeshift."""
        makeshift = f", {self.weights}" if self.weights in MAKESHIFT else ""
        return self.backbone_name + makeshift

    @property
    def training_seconds(self) -> float:
        """Seconds of the frozen part and of all phases of training."""
        spent = self.provenance["seconds"]
        return spent["frozen"] + sum(spent[stage] for stage in self.scores)

    @property
    def classes(self) -> list[str]:
        """All labels, sorted: the columns of the probabilities."""
        return self.provenance["dataset"]["classes"]

    def load_model(self) -> keras.Model:
        """Load the whole network: raw RGB (n, size, size, 3) in 0..255 to probabilities.

        Raises:
            InputError: if it is missing, not the one this run has saved, or holds code (Keras'
                safe mode; see the advisory to CVE-2025-1550).
        """
        file = self.folder / MODEL
        again = f"train it again with «{command(self.config)} --force»"
        if not file.is_file():
            raise InputError(f"{file}: no such file (networks are not kept in Git); {again}")
        record = self.folder / MODEL_HASH
        if not record.is_file() or record.read_text().split()[:1] != [sha256_file(file)]:
            raise InputError(f"{file}: not the network whose hash {MODEL_HASH} records; {again}")
        try:
            return keras.saving.load_model(file, compile=False, safe_mode=True)
        except MemoryError:
            raise
        except Exception as error:  # Keras raises many kinds for what it refuses or cannot read
            if "OOM" in str(error):  # TensorFlow's
                raise MemoryError from None
            raise InputError(f"{file}: refused ({first_line(error)}); {again}") from None

    @cached_property
    def targets(self) -> np.ndarray:
        """Class index of every test image, shape (n,)."""
        return self._class_index(self.test)

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Per stage, the probabilities for the test split, shape (n, classes)."""
        return {stage: self._array("test", stage) for stage in self.scores}

    def validation(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the validation split's class indices (n,) and probabilities (n, classes)."""
        return self._class_index(_read_index(self.folder, "val")), self._array("val", stage)

    def _array(self, split: str, stage: str) -> np.ndarray:
        return np.load(self.folder / f"{FILES[split]}-{slug(stage)}.npy")

    def _class_index(self, images: pd.DataFrame) -> np.ndarray:
        return np.searchsorted(np.array(self.classes), images["label"].to_numpy(str))


def load(folder: Path | str) -> Run:
    """Read a finished run.

    Args:
        folder: a run folder, or its name below `data/results`.

    Raises:
        InputError: if there is none, or its files are damaged.
    """
    folder = Path(folder)
    folder = folder if folder.is_dir() else PATHS.results / folder
    if not (folder / "metrics.json").is_file():
        raise InputError(
            f"{folder}: no finished run here; start it with «python -m fruitveg_tl run»"
        )
    with _named(folder):
        scores, settings, provenance = _read_json(folder)
        return Run(
            folder,
            config.RunConfig(**settings),
            provenance,
            pd.read_csv(folder / "history.csv"),
            scores,
            _read_index(folder, "test"),
        )


def read(results: Path | None = None) -> pd.DataFrame:
    """Return one row per finished run and stage.

    Args:
        results: folder of run folders; default `PATHS.results`.

    Returns:
        dataset (name), content (SHA-256 of the images and labels), model, stage, weights (source),
        size in pixels, seed, run (folder name), every metric, parameters (trained in that stage),
        seconds (of training up to that stage's end, the frozen part included), ablation (those in
        use, in words; mostly none), settings (as JSON, without the seed). A folder that cannot be
        understood, or is a copy of another, is named in a warning.
    """
    rows, seen = [], {}
    folders = [file.parent for file in (results or PATHS.results).glob("*/metrics.json")]
    for folder in sorted(
        folders, key=lambda x: (not re.search("-[0-9a-f]{8}$", x.name), len(x.name), x.name)
    ):
        try:
            with _named(folder):
                stages = _rows(folder)
                first = seen.setdefault((folder / "provenance.json").read_bytes(), folder)
            if first is folder:
                rows += stages
            else:
                note(f"WARNING: {printable(folder)}: a copy of {printable(first)}, not counted")
        except InputError as error:
            note(f"WARNING: {error}")
    return pd.DataFrame(rows)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Name the folder whose files cannot be understood."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, InputError) as error:
        raise InputError(
            f"{printable(folder)}: not a finished run of this version ({type(error).__name__}: "
            f"{first_line(error)}); remove it"
        ) from None


def _rows(folder: Path) -> list[dict]:
    scores, settings, provenance = _read_json(folder)
    identity = config.RunConfig(**settings).identity()
    seed = identity.pop("seed")
    content, seconds = provenance["dataset"]["sha256"], provenance["seconds"]
    rows, spent = [], seconds["frozen"]
    for stage in scores:
        spent += seconds[stage]
        rows.append(
            {
                "dataset": provenance["dataset"]["name"],
                "content": content,
                "model": BACKBONES[settings["backbone"]].name,
                "stage": stage,
                "weights": provenance["weights"]["source"],
                "size": settings["size"],
                "seed": seed,
                "parameters": provenance["trained_parameters"][stage],
                "seconds": spent,
                "run": folder.name,
                "ablation": ablations_in_words(settings),
                "settings": json.dumps(identity),
            }
            | scores[stage]
        )
    return rows


def slug(stage: str) -> str:
    """Return a stage's name as it stands in file names, e.g. "linear-probe"."""
    return stage.replace(" ", "-")


def _read_json(folder: Path) -> tuple[dict, dict, dict]:
    """Return scores, in the order of the stages, settings and provenance."""
    names = ("metrics.json", "config.json", "provenance.json")
    scores, settings, provenance = (json.loads((folder / name).read_text()) for name in names)
    stages = {stage: scores[stage] for stage in config.STAGES if stage in scores}
    if not stages:
        raise ValueError("metrics.json has no stage")
    return stages, settings, provenance


def _read_index(folder: Path, split: str) -> pd.DataFrame:
    # Labels and paths are text, also where they look like numbers or like nothing.
    return pd.read_csv(folder / f"{split}.csv", dtype=str, keep_default_na=False)
