"""What may differ by backbone, chosen by grouped cross-validation. The test split is not read.

Every candidate is a boundary, a fine-tuning rate and a weight decay. It is trained three times by
the study's recipe, with one augmented view and few epochs, on two thirds of the training and
validation images of grocery, and scored on the third that it has not seen; a part of the two thirds
serves as its validation split. Groups stay together: near duplicates, and what looks like one
visit to one shelf (images of one fine class whose frozen features cluster).

Started again, it goes on: every training is a row of the backbone's table at once.

    FRUITVEG_DATA=… FRUITVEG_WEIGHTS=… .venv/bin/python data/tuning/tune.py BACKBONE
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering

HOME = Path(tempfile.gettempdir()) / "fruitveg-tuning"  # decoded images and activations
SIZE, FOLDS, SEED = 224, 3, 0
IMAGES_A_CLUSTER = 4  # on average
VALIDATION = 0.15  # fraction of what is not held out
RACE = 0.01  # of accuracy: what is further behind after a fold is out (Maron & Moore 1994)
CANDIDATES = {
    "mobilenetv2": [
        ("block_5_add", 5e-4, 1e-2),
        ("block_5_add", 1e-3, 1e-2),
        ("block_12_add", 1e-3, 1e-2),
        ("block_5_add", 5e-4, 1e-1),
        # The best rate was the lowest: the grid goes on.
        ("block_5_add", 2e-4, 1e-2),
        ("block_5_add", 1e-4, 1e-2),
    ],
    "resnet50": [
        ("conv4_block6_out", 2e-4, 1e-2),
        ("conv4_block6_out", 5e-4, 1e-2),
        ("conv3_block4_out", 2e-4, 1e-2),
        ("conv4_block6_out", 2e-4, 1e-1),
    ],
    "vgg16": [
        ("block4_pool", 1e-4, 1e-2),
        ("block4_pool", 3e-4, 1e-2),
        ("block3_pool", 1e-4, 1e-2),
        ("block4_pool", 1e-4, 1e-1),
    ],
}
KEY = ["boundary", "finetune_rate", "weight_decay", "fold"]
RECIPE = {"crop": 0.875, "views": 1, "logit_adjustment": 0.5, "finetune_epochs": 6}


def splits() -> pd.DataFrame:
    """Deal the groups of every class; return file, label, and the split in each fold."""
    from fruitveg_tl.data import audit, registry, resplit

    dataset = registry.load("grocery")
    rows = np.flatnonzero(dataset.index["split"] != "test")
    images = dataset.index.iloc[rows].reset_index(drop=True)
    # What shares a cluster or a duplicate is one group: chains of both join.
    duplicates = audit.duplicates(dataset, dataset.pixels(resplit.SIZE))[["first", "second"]]
    first = pd.Series(rows).groupby(_visits(dataset, rows)).transform("first")
    pairs = pd.concat([duplicates, pd.DataFrame({"first": first, "second": rows})])
    group = pd.Series(audit.duplicate_groups(pairs, len(dataset.index))[rows])
    dealt = pd.DataFrame({"file": [str(dataset.root / path) for path in images["path"]]})
    dealt["label"] = images["label"]
    dealt[[f"fold {fold}" for fold in range(FOLDS)]] = "train"
    rng = np.random.default_rng(SEED)
    for label in sorted(set(images["label"])):
        sizes = group[images["label"] == label].value_counts()
        parts = resplit.equal_parts(sizes, FOLDS, rng)
        rng.shuffle(parts)  # the largest groups of all classes are not one fold's
        for fold, held_out in enumerate(parts):
            rest = sizes.drop(held_out).sample(frac=1, random_state=rng)
            chosen_by = rest.index[(rest.cumsum() - rest / 2) <= max(VALIDATION * rest.sum(), 1)]
            chosen_by = chosen_by if len(chosen_by) else rest.index[[rest.argmin()]]
            own = images["label"] == label
            dealt.loc[own & group.isin(held_out), f"fold {fold}"] = "test"
            dealt.loc[own & group.isin(chosen_by), f"fold {fold}"] = "validation"
    return dealt


def _visits(dataset, rows: np.ndarray) -> np.ndarray:
    """Number the clusters of alike images within each fine class."""
    from fruitveg_tl.models import weights
    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.models.network import build_network
    from fruitveg_tl.training.inference import Inference

    entry = BACKBONES["mobilenetv2"]
    network = build_network(entry, 2, SIZE, weights.resolve(entry).values)
    boundary = Inference(network.frozen).predict(dataset.pixels(SIZE, RECIPE["crop"])[rows])
    features = Inference(network.pool).predict(boundary)
    fine = dataset.index["path"].iloc[rows].map(lambda path: Path(path).parent.name).to_numpy()
    visit = np.zeros(len(rows), int)
    for name in sorted(set(fine)):
        members = np.flatnonzero(fine == name)
        count = max(2, len(members) // IMAGES_A_CLUSTER)
        cluster = AgglomerativeClustering(count, metric="cosine", linkage="average")
        visit[members] = visit.max() + 1 + cluster.fit_predict(features[members])
    return visit


def lay(folder: Path, files: pd.Series, labels: pd.Series, split: pd.Series) -> None:
    """Link the images into split folders."""
    for number, (file, label, name) in enumerate(zip(files, labels, split, strict=True)):
        link = folder / name / label / f"{number:04d}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)


def train(folder: Path, backbone: str, candidate: tuple, fold: int) -> dict:
    """Train one candidate on one fold; return its row of the log."""
    from fruitveg_tl import run as running
    from fruitveg_tl.config import FINETUNED, PROBE, RunConfig, Selection
    from fruitveg_tl.data import registry
    from fruitveg_tl.utils import runtime
    from fruitveg_tl.utils.storage import remove

    boundary, rate, decay = candidate
    config = RunConfig(
        backbone,
        boundary=boundary,
        finetune_rate=rate,
        weight_decay=decay,
        seed=SEED,
        **RECIPE,
    )
    begin = time.perf_counter()
    images = registry.load(str(folder))
    (job,) = running.jobs(images, Selection(str(folder)), [config])
    run = running.train(*job)
    scores = {
        f"{name} {metric}": round(run.scores[stage][key], 4)
        for name, stage in (("probe", PROBE), ("fine-tuned", FINETUNED))
        for metric, key in (("accuracy", "accuracy"), ("loss", "loss"), ("F1", "f1_macro"))
    }
    remove(run.folder)
    return (
        dict(zip(KEY, (*candidate, fold), strict=True))
        | scores
        | {
            "weights": run.weights,
            "seconds": round(time.perf_counter() - begin),
            "commit": runtime.commit()[:9],
        }
    )


def behind(log: pd.DataFrame, candidate: tuple) -> bool:
    """Tell whether a candidate is so far behind another, on its folds so far, that it is out."""
    scores = log.pivot(index="fold", columns=KEY[:-1], values="fine-tuned accuracy")
    if candidate not in scores:
        return False
    on_its_folds = scores.dropna(subset=[candidate]).mean()
    return on_its_folds[candidate] < on_its_folds.max() - RACE


def main(backbone: str) -> None:
    """Train what the backbone's table lacks, then print each candidate's mean over the folds."""
    HOME.mkdir(exist_ok=True)
    os.environ["FRUITVEG_HOME"] = str(HOME)  # before the package reads it
    from fruitveg_tl.utils.storage import exclusive

    with exclusive(HOME / "folds"):
        if not (HOME / f"fold{FOLDS - 1}").exists():
            dealt = splits()
            for fold in range(FOLDS):
                lay(HOME / f"fold{fold}", dealt["file"], dealt["label"], dealt[f"fold {fold}"])
    file = Path(__file__).with_name(f"{backbone}.csv")
    log = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEY)
    for candidate in CANDIDATES[backbone]:
        for fold in range(FOLDS):
            if (log[KEY] == [*candidate, fold]).all(axis=1).any():
                continue
            if behind(log, candidate):
                print(f"{candidate}: left the race before fold {fold}")
                break
            row = train(HOME / f"fold{fold}", backbone, candidate, fold)
            log = pd.concat([log, pd.DataFrame([row])], ignore_index=True)
            log.to_csv(file, index=False)
            print(row, flush=True)
    finished = log.groupby(KEY[:-1], sort=False).filter(lambda rows: len(rows) == FOLDS)
    means = finished.groupby(KEY[:-1], sort=False)["fine-tuned accuracy"].mean()
    print(means.round(4).to_string())
    print("chosen:", means.idxmax())


if __name__ == "__main__":
    main(sys.argv[1])
