"""Results on disk and the table made of them.

One folder per run below `data/results/`, written in one atomic step when the run is over:

    config.json               the RunConfig
    provenance.json           images, weights, versions, hardware, commit, times
    history.csv               one row per stage and epoch
    metrics.json              per stage: `metrics.evaluate` on the test split
    classification_report.csv             `metrics.classification_report` of the last stage
    test.csv                  path and true label of every test image
    probabilities-STAGE.npy   float32 (n_test, classes), rows as in test.csv
    val.csv, validation-STAGE.npy   the same for the validation split
    model.keras               the whole network, raw RGB in (not kept in Git)
    model.keras.sha256        its hash, as `sha256sum -c` reads it (not kept in Git)
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from fruitveg_tl import config
from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.weights import MAKESHIFT, bundled_file, card, training_seconds, trainings
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import atomic_path, sha256_file, write_json

MODEL, MODEL_HASH = "model.keras", "model.keras.sha256"
SCORES = {
    "Accuracy": "accuracy",
    "Loss": "loss",
    "Precision": "precision_macro",
    "Recall": "recall_macro",
    "F1": "f1_macro",
    "Top-5": "top5_accuracy",
}


def write(
    folder: Path,
    settings: config.RunConfig,
    provenance: dict,
    history: list[dict],
    dataset: Dataset,
    probabilities: dict[str, np.ndarray],
    validation: dict[str, np.ndarray],
    model: keras.Model,
) -> None:
    """Store a finished run; `folder` appears whole or not at all.

    Args:
        folder: of the run.
        settings: what was run.
        provenance: where it comes from.
        history: one record per stage and epoch.
        dataset: the images.
        probabilities: per stage, the probabilities for the test split.
        validation: per stage, the probabilities for the validation split.
        model: the whole network.
    """
    targets = dataset.targets[dataset.rows("test")]
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", settings.to_dict())
        write_json(temporary / "provenance.json", provenance)
        pd.DataFrame(history).to_csv(temporary / "history.csv", index=False)
        for split, name, values in (
            ("test", "probabilities", probabilities),
            ("val", "validation", validation),
        ):
            images = dataset.index.loc[dataset.rows(split), ["path", "label"]]
            images.to_csv(temporary / f"{split}.csv", index=False)
            for stage, array in values.items():
                np.save(temporary / f"{name}-{slug(stage)}.npy", array.astype(np.float32))
        scores = {stage: metrics.evaluate(targets, p) for stage, p in probabilities.items()}
        write_json(temporary / "metrics.json", scores)
        last = list(probabilities.values())[-1]
        metrics.classification_report(targets, last, dataset.classes).to_csv(
            temporary / "classification_report.csv"
        )
        model.save(temporary / MODEL)
        (temporary / MODEL_HASH).write_text(f"{sha256_file(temporary / MODEL)}  {MODEL}\n")


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
        """The backbone's name, e.g. "ResNet50"."""
        return BACKBONES[self.config.backbone].name

    @property
    def weights(self) -> str:
        """What training started from, as tables say it."""
        return self.provenance["weights"]["source"]

    @property
    def label(self) -> str:
        """The model's name, and what it started from where that is not what Keras publishes."""
        return (
            f"{self.backbone_name}, {self.weights}"
            if self.weights in MAKESHIFT
            else self.backbone_name
        )

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
        again = "train it again with «python -m fruitveg_tl run --force»"
        if not file.is_file():
            raise InputError(f"{file}: no such file (networks are not kept in Git); {again}")
        record = self.folder / MODEL_HASH
        if not record.is_file() or record.read_text().split()[:1] != [sha256_file(file)]:
            raise InputError(f"{file}: not the network whose hash {MODEL_HASH} records; {again}")
        try:
            return keras.saving.load_model(file, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises many kinds for what it refuses or cannot read
            reason = str(error).splitlines()[0]
            raise InputError(f"{file}: refused ({reason}); {again}") from None

    @cached_property
    def targets(self) -> np.ndarray:
        """Class index of every test image, shape (n,)."""
        return self._class_index(self.test)

    def validation(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the validation split's class indices (n,) and probabilities (n, classes)."""
        images = pd.read_csv(self.folder / "val.csv", keep_default_na=False)
        return self._class_index(images), np.load(self.folder / f"validation-{slug(stage)}.npy")

    def _class_index(self, images: pd.DataFrame) -> np.ndarray:
        return np.searchsorted(np.array(self.classes), images["label"].to_numpy(str))

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Per stage, the probabilities for the test split, shape (n, classes)."""
        files = {stage: f"probabilities-{slug(stage)}.npy" for stage in self.scores}
        return {stage: np.load(self.folder / name) for stage, name in files.items()}


def load(folder: Path | str) -> Run:
    """Read a finished run.

    Args:
        folder: a run folder, or its name below `data/results`.

    Raises:
        InputError: if there is no finished run.
    """
    folder = Path(folder)
    folder = folder if folder.is_dir() else config.PATHS.results / folder
    if not (folder / "metrics.json").is_file():
        raise InputError(f"{folder}: no finished run here; «python -m fruitveg_tl run» makes one")
    scores, settings, provenance = _read_json(folder)
    return Run(
        folder,
        config.RunConfig(**settings),
        provenance,
        pd.read_csv(folder / "history.csv"),
        {stage: scores[stage] for stage in config.STAGES if stage in scores},
        pd.read_csv(folder / "test.csv", keep_default_na=False),
    )


def _read_json(folder: Path) -> list[dict]:
    names = ("metrics.json", "config.json", "provenance.json")
    return [json.loads((folder / name).read_text()) for name in names]


def slug(stage: str) -> str:
    """Return a stage's name as it stands in file names, e.g. "linear-probe"."""
    return stage.replace(" ", "-")


def read(results: Path | None = None) -> pd.DataFrame:
    """Return one row per finished run and stage.

    Args:
        results: folder of run folders; default `config.PATHS.results`.

    Returns:
        dataset, model, stage, weights (source), size in pixels, seed, run (folder name), every
        metric, parameters (trained in that stage), seconds (of training up to that stage's end,
        the frozen part included), ablation (from the study's protocol, in words; mostly none),
        recipe_options (those in use, in words) and settings (equal for runs that differ in the
        seed alone).
    """
    rows = []
    for file in sorted((results or config.PATHS.results).glob("*/metrics.json")):
        scores, settings, provenance = _read_json(file.parent)
        seed = settings.pop("seed")
        ablations = [name for name in config.ABLATIONS if name in settings]
        ablations += ["views"] if settings["views"] == 0 else []
        recipe_options = [name for name in config.RECIPE_OPTIONS if name in settings]
        in_words = {name: f"{name} {value}" for name, value in settings.items()}
        del settings["weights"]  # the way they were asked for; what they are stands on its own
        spent = provenance["seconds"]["frozen"]
        for stage in (stage for stage in config.STAGES if stage in scores):
            spent += provenance["seconds"][stage]
            rows.append(
                {
                    "dataset": provenance["dataset"]["name"],
                    "model": BACKBONES[settings["backbone"]].name,
                    "stage": stage,
                    "weights": provenance["weights"]["source"],
                    "size": settings["size"],
                    "seed": seed,
                    "parameters": provenance["trained_parameters"][stage],
                    "seconds": spent,
                    "run": file.parent.name,
                    "ablation": ", ".join(in_words[name] for name in ablations),
                    "recipe_options": ", ".join(
                        in_words[name]
                        for name in recipe_options
                        if (name, stage) != ("soup", config.PROBE)
                    ),
                    "settings": json.dumps([settings, provenance["dataset"]["sha256"]]),
                }
                | scores[stage]
            )
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the table of evaluated models: one row per model, stage and setting.

    Args:
        runs: from `read`, not empty.

    Returns:
        text columns; a score is its mean over the seeds, with half the range from the lowest to
        the highest seed behind "±" where there are several.
    """
    rows = []
    keys = ["dataset", "model", "size", "stage", "weights", "settings"]
    for (dataset, model, size, stage, weights, _), group in runs.groupby(keys, sort=False):
        special = ", ".join(filter(None, group[["recipe_options", "ablation"]].iloc[0]))
        position = list(config.STAGES).index(stage)
        scores = {title: _spread(group[name]) for title, name in SCORES.items()}
        rows.append(
            {
                "Dataset": dataset,
                "Model": model,
                "Pixels": size,
                "Stage": f"{stage}, {special}" if special else stage,
                "Weights": weights,
                **scores,
                "Seeds": len(group),
                "Trained parameters": f"{int(group['parameters'].iloc[0]):,}",
                "Training time": _duration(group["seconds"].mean()),
                "order": (dataset, size, position, model, weights, special),
            }
        )
    return pd.DataFrame(sorted(rows, key=lambda row: row.pop("order")))


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(text: str, runs: pd.DataFrame) -> str:
    """Replace what stands between `<!-- results DATASET -->` and `<!-- /results -->` in `text`.

    Runs that ablate the protocol are left out. `<!-- bundled -->` marks the place of
    `bundled_weights`.

    Raises:
        InputError: if a marked dataset has no finished run.
    """

    def block(match: re.Match) -> str:
        chosen = runs[(runs["dataset"] == match[2]) & (runs["ablation"] == "")]
        if not len(chosen):
            raise InputError(f"no finished run of {match[2]}; run it first, see README")
        return f"{match[1]}\n{markdown(table(chosen).drop(columns='Dataset'))}\n{match[3]}"

    text = re.sub(r"(<!-- results (\S+) -->).*?(<!-- /results -->)", block, text, flags=re.DOTALL)
    return re.sub(
        "(<!-- bundled -->).*?(<!-- /bundled -->)",
        lambda match: f"{match[1]}\n{markdown(bundled_weights())}\n{match[2]}",
        text,
        flags=re.DOTALL,
    )


def bundled_weights() -> pd.DataFrame:
    """Return one row for each backbone whose weights this project bundles, from their cards."""
    rows = []
    for backbone in BACKBONES.values():
        about = card(backbone)
        rows.append(
            {
                "Backbone": backbone.name,
                "Right, held out": f"{about['held_out_accuracy']:.3f}",
                "After rounding": f"{about['held_out_accuracy_rounded']:.3f}",
                "Epochs": sum(part["recipe"]["epochs"] for part in trainings(about)),
                "Training": _duration(training_seconds(about)),
                "MB": f"{bundled_file(backbone).stat().st_size / 1e6:.1f}",
                "SHA-256": about["sha256"][:8],
            }
        )
    return pd.DataFrame(rows)


def _spread(values: pd.Series) -> str:
    half = (values.max() - values.min()) / 2
    return f"{values.mean():.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
