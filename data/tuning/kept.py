"""How much of fine-tuning to keep, asked of the folds of `tune.py`. The test split is not read.

Mixup makes a network's probabilities timid. A validation loss punishes that more than it rewards a
better order of the classes, so its lowest may come before the network is at its best, both along
the epochs and along the way from the probe's weights to the fine-tuned ones (WiSE-FT, Wortsman et
al. 2022). Here every network is fine-tuned once on each fold; then the epoch of the lowest
validation loss and the last one are both mixed with the probe's weights in several proportions, and
scored on the third that was held out.

    FRUITVEG_DATA=… FRUITVEG_WEIGHTS=… .venv/bin/python data/tuning/kept.py
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import tune

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # fraction of fine-tuning that is kept
RECIPE = tune.RECIPE | {"finetune_epochs": 10, "keep_lowest_loss": False}
RATES = {"mobilenetv2": 2e-4, "resnet50": 5e-4}  # chosen by `tune.py`
FILE = Path(__file__).with_suffix(".csv")
KEY = ["backbone", "fold"]


def rows(backbone: str, fold: int) -> Iterator[dict]:
    """Fine-tune once, and yield the scores of everything that could be kept."""
    from fruitveg_tl import run
    from fruitveg_tl.config import FINETUNED, RunConfig
    from fruitveg_tl.evaluation import calibration, metrics
    from fruitveg_tl.inputs import gather
    from fruitveg_tl.training.data_parallel import predict_on_batch
    from fruitveg_tl.training.fit import between

    rate = RATES[backbone]
    settings = RECIPE | {"finetune_rate": rate, "weight_decay": 1e-2, "seed": tune.SEED}
    inputs = gather(RunConfig(str(tune.HOME / f"fold{fold}"), backbone, **settings))
    state = run._compute_frozen_part(inputs)
    run._train_linear_probe(state)
    start = state.network.tail.get_weights()
    run._train_tail(state, FINETUNED, rate)
    tail, targets = state.trainable, inputs.dataset.targets
    for epoch in ("best", "last"):
        tail.load_weights(state.folder / FINETUNED / "state" / f"{epoch}.weights.h5")
        tuned = tail.get_weights()
        for alpha in ALPHAS:
            tail.set_weights(between(start, tuned, alpha))
            found = {}
            for split in ("val", "test"):
                batches = [predict_on_batch(tail, x) for x, _ in state.evaluation(split)]
                found[split] = targets[inputs.dataset.rows(split)], np.concatenate(batches)
            scaled = calibration.scale(found["val"][1], calibration.temperature(*found["val"]))
            yield {
                "backbone": backbone,
                "fold": fold,
                "epoch": epoch,
                "alpha": alpha,
                "validation loss": metrics.evaluate(*found["val"])["loss"],
                "at its temperature": metrics.evaluate(found["val"][0], scaled)["loss"],
                "accuracy": metrics.evaluate(*found["test"])["accuracy"],
            }


def summary(log: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each rule, averaged over the folds."""

    def by(column: str, epoch: str) -> pd.Series:
        of = log[log["epoch"] == epoch]
        return of.loc[of.groupby(KEY)[column].idxmin()].groupby(KEY[:-1])["accuracy"].mean()

    last = log[(log["epoch"] == "last") & (log["alpha"] == 1)]
    return pd.DataFrame(
        {
            "epoch and mixture of the lowest loss": by("validation loss", "best"),
            "the same, loss at its temperature": by("at its temperature", "best"),
            "last epoch, mixture of the lowest loss": by("validation loss", "last"),
            "last epoch, nothing undone": last.groupby(KEY[:-1])["accuracy"].mean(),
        }
    )


def main() -> None:
    """Train what the log lacks, then print each rule's mean over the folds."""
    os.environ["FRUITVEG_HOME"] = str(tune.HOME)  # before the package reads it
    log = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=KEY)
    for fold in range(tune.FOLDS):
        for backbone in RATES:
            if not (log[KEY] == [backbone, fold]).all(axis=1).any():
                log = pd.concat([log, pd.DataFrame(rows(backbone, fold))], ignore_index=True)
                log.round(4).to_csv(FILE, index=False)
    print(summary(log).round(3).T.to_string())


if __name__ == "__main__":
    main()
