"""Tables of evaluated models, for the terminal, the notebooks and README.md."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

import numpy as np
import pandas as pd

from fruitveg_tl.config import FINETUNED, PROBE, STAGES, TRAIN
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.studies import Run
from fruitveg_tl.utils.errors import printable

SCORES = {
    "Accuracy": "accuracy",
    "Loss": "loss",
    "Precision": "precision_macro",
    "Recall": "recall_macro",
    "F1": "f1_macro",
    "Top-5": "top5_accuracy",
}
LABEL_COUNTS = (1, 2, 5, 10, 20)  # training images per class in the study


def evaluated_models(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the table of evaluated models: one row per model, stage and setting.

    `runs` are from `studies.by_stage`, not empty. A score is the mean over the seeds "±" half their
    range. The stage includes the settings in which otherwise equal runs differ. Data sets of the
    same name get the first digits of their hash.
    """
    names = _dataset_names(runs)
    kind = ["content", "model", "size", "stage", "weights", "ablation"]
    peers = runs.groupby(kind)["settings"].unique()
    rows = []
    for key, seeds in runs.groupby([*kind, "settings"], sort=False):
        content, model, size, stage, weights, ablation, own = key
        differences = _differences(own, peers[key[:-1]])
        special = ", ".join(filter(None, [differences, ablation]))
        about = {
            "Dataset": names[content],
            "Model": model,
            "Pixels": size,
            "Stage": f"{stage}, {special}" if special else stage,
            "Weights": weights,
        }
        scores = {title: _spread(seeds[name]) for title, name in SCORES.items()}
        spent = {
            "Seeds": len(seeds),
            "Trained parameters": f"{int(seeds['parameters'].iloc[0]):,}",
            "Training time": _duration(seeds["seconds"].mean()),
        }
        order = (names[content], size, STAGES.index(stage), model, weights, special)
        rows.append((order, about | scores | spent))
    return pd.DataFrame([row for _, row in sorted(rows, key=itemgetter(0))])


def models(every: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return the study's table: one row per model, and one for the mean of their probabilities.

    A score is the mean over the runs "±" half their range. All models list their runs, one per seed
    or fold, in the same order.
    """
    rows = []
    for name, scores in _fine_tuned(every).items():
        row = {"Model": name, "Weights": "", "Frozen only": ""}
        row |= {"Fine-tuned": _spread(scores["accuracy"]), "Macro F1": _spread(scores["f1_macro"])}
        if runs := every.get(name):
            frozen = pd.Series([run.scores[PROBE]["accuracy"] for run in runs])
            seconds = np.mean([run.training_seconds for run in runs])
            row |= {"Weights": runs[0].weights, "Frozen only": _spread(frozen)}
            row |= {"Training time": _duration(float(seconds))}
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def five_metrics(every: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return accuracy, loss, precision, recall and F1 of every model of `models`, fine-tuned."""
    titles = list(SCORES)[:5]
    return pd.DataFrame(
        {"Model": name} | {title: _spread(scores[SCORES[title]]) for title in titles}
        for name, scores in _fine_tuned(every).items()
    )


def _fine_tuned(every: Mapping[str, Sequence[Run]]) -> dict[str, pd.DataFrame]:
    """Return for every model, and their mean if there are several, the scores of all runs."""
    scores = {
        name: pd.DataFrame([run.scores[FINETUNED] for run in runs]) for name, runs in every.items()
    }
    if len(every) > 1:
        means = zip(next(iter(every.values())), metrics.mean_probabilities(every), strict=True)
        together = [metrics.evaluate(run.targets, mean) for run, mean in means]
        scores[metrics.ENSEMBLE] = pd.DataFrame(together)
    return scores


def _differences(own: str, peers: Iterable[str]) -> str:
    """Return a run's values of the settings (JSON) in which it and its peers differ."""
    others = [json.loads(peer) for peer in peers]
    told = (name for name in others[0] if len({other.get(name) for other in others}) > 1)
    return ", ".join(f"{name} {json.loads(own).get(name)}" for name in told)


def _dataset_names(runs: pd.DataFrame) -> dict[str, str]:
    """Return a name for every content hash: the data set's, with digits if it is ambiguous."""
    names = runs.groupby("content")["dataset"].first()
    ambiguous = names.duplicated(keep=False)
    return {k: f"{name} ({k[:8]})" if ambiguous[k] else name for k, name in names.items()}


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown, with its texts escaped."""
    cells = [[escaped(text) for text in row] for row in table.astype(str).to_numpy()]
    lines = [[*map(escaped, table.columns)], ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def images_per_class(run: Run) -> float:
    """Return the mean number of training images per class."""
    return run.counts[TRAIN] / len(run.classes)


def _labels(run: Run) -> float:
    asked = run.row["images per class"]
    return asked if pd.notna(asked) else images_per_class(run)


def label_curves(runs: Iterable[Run]) -> dict[str, pd.DataFrame]:
    """Return per stage the test accuracy by the number of training images per class.

    `runs` are one network's, with `train_images_per_class` or all images, one per seed. A table has
    mean, low and high over the seeds, 0..1, indexed by images per class, ascending.
    """
    scored = pd.DataFrame(
        [
            [stage, _labels(run), scores["accuracy"]]
            for run in runs
            for stage, scores in run.scores.items()
        ],
        columns=["stage", "images per class", "accuracy"],
    )
    columns = {"mean": np.mean, "low": np.min, "high": np.max}
    curves = scored.groupby(["stage", "images per class"])["accuracy"].agg(**columns)
    return {stage: curves.loc[stage] for stage in STAGES if stage in curves.index}


def escaped(text: str) -> str:
    """Escape a text for Markdown."""
    return re.sub(r"[\\`*{}\[\]<>#$~^|@&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))


def listed(values: pd.Series) -> str:
    """List the entries of a series with their values, e.g. "kiwi (0.98), leek (0.50)"."""
    return ", ".join(f"{escaped(name)} ({value:.2f})" for name, value in values.items())


def _spread(values: pd.Series) -> str:
    half = (values.max() - values.min()) / 2
    return f"{values.mean():.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
