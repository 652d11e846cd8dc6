"""Finished runs as tables, read without images, weights or Keras.

A study is a folder:

    runs.csv           a row per run: settings, images, scores, seconds, provenance
    history.csv        a row per run, stage and epoch
    images.csv         a row per validation and test image: its set, split, path and label, and
                       (in committed studies) whether it, or a near duplicate, is in another split
    probabilities.npz  RUN/STAGE/SPLIT: float16 (n, classes), rows as in images.csv (not for
                       ablations), and RUN/STAGE/predicted: the class of every test image. Scores
                       were computed before rounding.

`data/results` holds the committed studies, `data/runs` a study of one row for each run of this
machine, with its network:

    model.keras, model.xml, model.bin the whole network, for raw RGB: for Keras, for OpenVINO
    model.keras.sha256                their hashes
    confidence.json                   the confidence from which its answers are sure
    probe.npz                         the linear probe: kernel and bias of its softmax layer
    preprocess.py, config.json, classes.json   to use the network without this package
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from csv import QUOTE_NONNUMERIC
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fruitveg_tl.config import PATHS, STAGES, TEST, TRAIN, VAL, RunConfig, settings
from fruitveg_tl.models.backbones import BACKBONES, BUNDLED, RANDOM
from fruitveg_tl.utils.errors import InputError, first_line, printable
from fruitveg_tl.utils.progress import note
from fruitveg_tl.utils.storage import HASHES, is_recorded, new_file

if TYPE_CHECKING:
    import keras

MODEL, PROBE_HEAD = "model.keras", "probe.npz"
METRICS = (
    "accuracy", "loss", "precision_macro", "recall_macro", "f1_macro", "top5_accuracy",
    "precision_weighted", "recall_weighted", "f1_weighted",
)  # fmt: skip

# Text columns, even where they look like numbers: names, and hashes such as 12e4.
TEXT = ("run", "images", "content", "changes", "identity", "weights sha256", "commit", "command")

AS_TEXT = {"keep_default_na": False, "na_values": [""]}  # a folder may be called "NA"


@dataclass(frozen=True)
class Study:
    """The tables of one study, read on demand; `runs` is `runs.csv`, indexed by the run's name."""

    folder: Path
    runs: pd.DataFrame

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per run, stage and epoch."""
        return pd.read_csv(self.folder / "history.csv", dtype={"run": str})

    @cached_property
    def images(self) -> pd.DataFrame:
        """A row per validation and test image."""
        # Labels and paths are text, even where they look like numbers or missing values.
        return pd.read_csv(self.folder / "images.csv", dtype=str, keep_default_na=False)

    def array(self, key: str) -> np.ndarray:
        """Read one array of `probabilities.npz`; raises KeyError if it is missing."""
        with np.load(self.folder / "probabilities.npz", allow_pickle=False) as archive:
            return archive[key]

    def arrays(self) -> dict[str, np.ndarray]:
        """Read all arrays of `probabilities.npz`."""
        with np.load(self.folder / "probabilities.npz", allow_pickle=False) as archive:
            return dict(archive)

    def __iter__(self) -> Iterator["Run"]:
        return (Run(self, name) for name in self.runs.index)


@dataclass(frozen=True)
class Run:
    """One finished run: a row of a study and its entries in the other tables."""

    study: Study
    name: str

    @cached_property
    def row(self) -> pd.Series:
        """The row of `runs.csv`."""
        return self.study.runs.loc[self.name]

    @property
    def folder(self) -> Path:
        """The study's folder, which may hold the network."""
        return self.study.folder

    @cached_property
    def config(self) -> RunConfig:
        """How it was trained."""
        return RunConfig(**json.loads(self.row["settings"]))

    @property
    def backbone_name(self) -> str:
        """The backbone's name in tables, e.g. "ResNet50"."""
        return BACKBONES[self.row["backbone"]].name

    @property
    def weights(self) -> str:
        """The name of the source weights in tables."""
        return self.row["weights"]

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Its stages, in the order of training."""
        return tuple(s for s in STAGES if pd.notna(self.row.get(f"{s} accuracy")))

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """For each stage, the test scores of `metrics.evaluate`."""
        # A study that is older than a metric lacks it.
        missing = float("nan")
        return {
            s: {name: float(self.row.get(f"{s} {name}", missing)) for name in METRICS}
            for s in self.stages
        }

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of the frozen part and of every stage."""
        return {part: float(self.row[f"{part} seconds"]) for part in ("frozen", *self.stages)}

    @property
    def training_seconds(self) -> float:
        """Seconds of the frozen part and of all stages together."""
        return sum(self.seconds.values())

    @property
    def counts(self) -> dict[str, int]:
        """Number of training, validation and test images."""
        return {split: int(self.row[f"{split} images"]) for split in (TRAIN, VAL, TEST)}

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per stage and epoch."""
        history = self.study.history
        return history[history["run"] == self.name].drop(columns="run").reset_index(drop=True)

    @cached_property
    def test(self) -> pd.DataFrame:
        """Path and label of every test image, and whether it is "leaked"."""
        return self.shown(TEST)

    @cached_property
    def classes(self) -> list[str]:
        """All labels, sorted: the columns of the probabilities."""
        return sorted(set(self.test["label"]))

    @property
    def committed(self) -> bool:
        """Whether it belongs to a committed study."""
        return self.folder.parent == PATHS.results

    @property
    def leaked(self) -> np.ndarray:
        """Whether each test image, or a near duplicate, is also in another split, shape (n,)."""
        return (self.test["leaked"] == "True").to_numpy()

    @cached_property
    def targets(self) -> np.ndarray:
        """Class index of every test image, shape (n,)."""
        return np.searchsorted(np.array(self.classes), self.test["label"].to_numpy(str))

    @cached_property
    def predicted(self) -> dict[str, np.ndarray]:
        """Per stage, the class index predicted for every test image, shape (n,)."""
        return {s: self._array(s, "predicted").astype(int) for s in self.stages}

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Per stage, the test probabilities (n, classes); KeyError for a committed ablation."""
        return {s: self._array(s, TEST).astype(np.float32) for s in self.stages}

    @cached_property
    def val_targets(self) -> np.ndarray:
        """Class index of every validation image, shape (n,)."""
        labels = self.shown(VAL)["label"].to_numpy(str)
        return np.searchsorted(np.array(self.classes), labels)

    def validation(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the validation split's class indices (n,) and probabilities (n, classes)."""
        return self.val_targets, self._array(stage, VAL).astype(np.float32)

    def load_model(self) -> "keras.Model":
        """Load the whole network: raw RGB (n, size, size, 3) in 0..255 to probabilities.

        Raises InputError if it is missing, has another hash, or contains code (CVE-2025-1550).
        """
        from fruitveg_tl.utils.backend import keras

        file = self.folder / MODEL
        command = self.row["command"]
        again = f"train it again with «{command} --force»" if command else "train it again"
        if not file.is_file():
            raise InputError(f"{file}: no such file (networks are not kept in Git); {again}")
        if not is_recorded(file):
            raise InputError(f"{file}: not the network whose hash {HASHES} records; {again}")
        try:
            return keras.saving.load_model(file, compile=False, safe_mode=True)
        except MemoryError:
            raise
        except Exception as error:  # Keras raises many kinds
            if "OOM" in str(error):  # TensorFlow's
                raise MemoryError from None
            raise InputError(f"{file}: refused ({first_line(error)}); {again}") from None

    def shown(self, split: str) -> pd.DataFrame:
        """Return path and label of every image of a split, and whether it is "leaked"."""
        images = self.study.images
        own = (images["images"] == self.row["images"]) & (images["split"] == split)
        return images.loc[own, ["path", "label", "leaked"]].reset_index(drop=True)

    def _array(self, stage: str, what: str) -> np.ndarray:
        return self.study.array(f"{self.name}/{slug(stage)}/{what}")


def load_study(name: str) -> Study:
    """Read a study below `data/results` or `data/runs`; InputError if there is none."""
    for place in (PATHS.results, PATHS.runs):
        if (place / name / "runs.csv").is_file():
            return read_study(place / name)
    known = ", ".join(sorted(file.parent.name for file in PATHS.results.glob("*/runs.csv")))
    raise InputError(f"no study {name!r} below {PATHS.results}; there are {known or 'none'}")


def read_study(folder: Path) -> Study:
    """Read a study, cached until its table changes; InputError if damaged or of another version."""
    file = folder / "runs.csv"
    return _read_study(folder, file.stat().st_mtime_ns if file.exists() else 0)


@cache
def _read_study(folder: Path, changed: int) -> Study:
    try:
        runs = pd.read_csv(folder / "runs.csv", dtype=dict.fromkeys(TEXT, str), **AS_TEXT)
        texts = runs.columns.intersection(TEXT)
        runs[texts] = runs[texts].fillna("")
        runs = runs.set_index("run")
        for settings in runs["settings"]:
            RunConfig(**json.loads(settings))
        if not {"backbone", "images", "weights", "command"} <= set(runs):
            raise ValueError("columns are missing")
    except (OSError, ValueError, LookupError, TypeError, InputError) as error:
        raise InputError(
            f"{printable(folder)}: not a study of this version ({type(error).__name__}: "
            f"{first_line(error)}); remove it"
        ) from None
    return Study(folder, runs)


def own_runs() -> list[Run]:
    """Return the finished runs of this machine, each once; warn of unreadable ones."""
    found: dict[str, Run] = {}
    folders = [file.parent for file in PATHS.runs.glob("*/runs.csv")]
    for folder in sorted(folders, key=lambda x: (len(x.name), x.name)):
        try:
            for run in read_study(folder):
                if run.row["backbone"] not in BACKBONES:
                    name = f"{printable(folder)}: its backbone, {run.row['backbone']},"
                    note(f"WARNING: {name} is not registered (models/backbones.py); passed over")
                    continue
                # A copy has the same seconds, too.
                first = found.setdefault(run.row.to_json(), run)
                if first.folder != folder:
                    place = printable(first.folder)
                    note(f"WARNING: {printable(folder)}: a copy of {place}, not counted")
        except InputError as error:
            note(f"WARNING: {error}")
    return list(found.values())


def committed_runs() -> list[Run]:
    """Return the runs of all committed studies."""
    folders = sorted(file.parent for file in PATHS.results.glob("*/runs.csv"))
    return [run for folder in folders for run in read_study(folder)]


def find(identity: str) -> Run | None:
    """Return this machine's finished run with this identity, or None."""
    for file in sorted(PATHS.runs.glob(f"*-{identity}/runs.csv")):
        return next(iter(read_study(file.parent)))
    return None


def choose_run(name: str | None = None) -> Run:
    """Return the finished run to predict with; InputError if there is none.

    `name` is a run's folder, its name below `data/runs`, or a backbone's name, for its run with the
    lowest validation loss. None is the network saved last. Ablations come last.
    """
    if name is not None and name.lower() not in BACKBONES:
        folder = Path(name) if Path(name).is_dir() else PATHS.runs / name
        if not (folder / "runs.csv").is_file():
            raise InputError(
                f"{folder}: no finished run here; start it with «python -m fruitveg_tl run»"
            )
        return next(iter(read_study(folder)))
    runs = [
        run
        for run in own_runs()
        if (run.folder / MODEL).exists() and (name is None or run.config.backbone == name.lower())
    ]
    if not runs:
        raise InputError(
            f"{PATHS.runs}: no saved network{f' of {name}' if name else ''}; train one "
            f"with «python -m fruitveg_tl run{f' --backbones {name.lower()}' if name else ''}»"
        )
    # Ablations are trained for the appendices.
    runs = [run for run in runs if not _is_ablation(run)] or runs
    if name is None:
        return max(runs, key=lambda run: (run.folder / MODEL).stat().st_mtime)
    return min(runs, key=_validation_loss)


def _is_ablation(run: Run) -> bool:
    values = run.config.to_dict()
    declared = {field.name for field in settings(ablations=True)}
    return bool(declared & values.keys()) or pd.notna(run.row["images per class"])


def _validation_loss(run: Run) -> float:
    # Not from the history: the kept epoch may not have the lowest loss.
    targets, probabilities = run.validation(run.stages[-1])
    of_targets = probabilities[np.arange(len(targets)), targets]
    return -float(np.log(np.maximum(of_targets, np.finfo(np.float16).tiny)).mean())


def matching(runs: Iterable[Run], config: RunConfig, labels: float | None = None) -> dict[int, Run]:
    """Return by seed the runs with these settings, whatever the seed of `config`.

    `runs` are candidates on the same images, from the same weights. `config` has the backbone's
    defaults filled in; `labels` is the number of training images per class, None for all.
    """
    wanted = {**config.to_dict(), "seed": None}
    return {
        int(run.row["seed"]): run
        for run in runs
        if np.nan_to_num(float(run.row["images per class"])) == np.nan_to_num(float(labels or 0))
        and {**json.loads(run.row["settings"]), "seed": None} == wanted
    }


def to_publish() -> dict[str, list[Run]]:
    """Return by committed study the runs of this machine on the same images."""
    contents = {run.row["content"]: run.folder.name for run in committed_runs()}
    found: dict[str, list[Run]] = {}
    for run in own_runs():
        if name := contents.get(run.row["content"]):
            found.setdefault(name, []).append(run)
    return found


def publish(name: str, runs: Iterable[Run]) -> None:
    """Add runs of this machine to a committed study; each replaces a run with the same settings.

    Raises InputError, and writes nothing, if a run started from bundled weights, or the paths of
    its images differ from the study's.
    """
    study = load_study(name)
    table, history, arrays = study.runs, study.history, study.arrays()
    for run in runs:
        alike = [old for old in study if old.row["content"] == run.row["content"]]
        places = {split: _places(run, alike[0], split) for split in (VAL, TEST)}
        if run.weights == BUNDLED or any((found < 0).any() for found in places.values()):
            raise InputError(f"{printable(run.folder)}: not of this study: remove it, or {name}")
        labels = run.row["images per class"]
        images = alike[0].row["images"]
        alike = [old for old in alike if old.weights == run.weights]
        old = matching(alike, run.config, labels).get(run.row["seed"])
        gone = {run.name, old.name} if old else {run.name}
        table, history = table.drop(gone, errors="ignore"), history[~history["run"].isin(gone)]
        arrays = {key: array for key, array in arrays.items() if key.split("/")[0] not in gone}
        table = pd.concat([table, run.row.to_frame().T.assign(images=images)])
        history = pd.concat([history, run.history.assign(run=run.name)])
        whole = not run.row["changes"] and run.weights != RANDOM
        for stage in run.stages:
            for what, split in (("predicted", TEST), (TEST, TEST), (VAL, VAL)):
                if whole or what == "predicted":
                    key = f"{run.name}/{slug(stage)}/{what}"
                    arrays[key] = run.study.array(key)[places[split]]
    table = table.rename_axis("run").reset_index()
    save_tables(study.folder, table, history, study.images, arrays)


def _places(run: Run, other: Run, split: str) -> np.ndarray:
    """Return the position in `run`'s split of each image of the other run's, -1 if missing."""
    return pd.Index(run.shown(split)["path"]).get_indexer(other.shown(split)["path"])


def save_tables(
    folder: Path,
    runs: pd.DataFrame,
    history: pd.DataFrame,
    images: pd.DataFrame,
    probabilities: Mapping[str, np.ndarray],
) -> None:
    """Write the four files of a study into a folder."""
    with (
        # All are written before the first one is replaced.
        new_file(folder / "runs.csv") as for_runs,
        new_file(folder / "history.csv") as for_history,
        new_file(folder / "images.csv") as for_images,
        new_file(folder / "probabilities.npz") as for_probabilities,
    ):
        np.savez_compressed(for_probabilities, **probabilities)
        for file, table in ((for_runs, runs), (for_history, history), (for_images, images)):
            # A quoted name may contain line breaks.
            table.to_csv(file, index=False, quoting=QUOTE_NONNUMERIC)


def slug(stage: str) -> str:
    """Return a stage's name for file names, e.g. "linear-probe"."""
    return stage.replace(" ", "-")


def by_stage(runs: Iterable[Run]) -> pd.DataFrame:
    """Return one row per run and stage, for tables.

    Columns: dataset (name), content (SHA-256 of the images and labels), model, stage, weights
    (source), size in pixels, seed, run, every metric, parameters (trained in that stage), seconds
    (up to the end of that stage, including the frozen part), ablation (in words), settings (as
    JSON, without the seed).
    """
    rows = []
    for run in runs:
        settings, spent = run.config.to_dict(), run.seconds["frozen"]
        seed = settings.pop("seed")
        for stage in run.stages:
            spent += run.seconds[stage]
            rows.append(
                {
                    "dataset": run.row["images"],
                    "content": run.row["content"],
                    "model": run.backbone_name,
                    "stage": stage,
                    "weights": run.weights,
                    "size": settings["size"],
                    "seed": seed,
                    "parameters": run.row[f"{stage} parameters"],
                    "seconds": spent,
                    "run": run.name,
                    "ablation": run.row["changes"],
                    "settings": json.dumps(settings),
                }
                | run.scores[stage]
            )
    return pd.DataFrame(rows)
