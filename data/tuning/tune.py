"""What may differ by backbone, chosen by grouped cross-validation. The test split is not read.

Every candidate is a boundary, a fine-tuning rate and a weight decay. It is trained three times by
the study's recipe, with one augmented view and few epochs, on two thirds of the training and
validation images of grocery, and scored on the third that it has not seen; a part of the two thirds
serves as its validation split. Groups stay together: near duplicates, and what looks like one
visit to one shelf (images of one fine class whose frozen features cluster).

Started again, it goes on: every training is a row of `log.csv` at once.

    FRUITVEG_DATA=… FRUITVEG_WEIGHTS=… .venv/bin/python data/tuning/tune.py
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering

LOG = Path(__file__).with_name("log.csv")
HOME = Path(tempfile.gettempdir()) / "fruitveg-tuning"  # decoded images and activations
SIZE, PARTS, FOLDS, SEED = 224, 9, 3, 0
IMAGES_A_CLUSTER = 4  # on average
CANDIDATES = [
    ("mobilenetv2", "block_5_add", 5e-4, 1e-2),
    ("mobilenetv2", "block_5_add", 1e-3, 1e-2),
    ("mobilenetv2", "block_12_add", 5e-4, 1e-2),
    ("mobilenetv2", "block_5_add", 2e-4, 1e-2),
    ("mobilenetv2", "block_5_add", 5e-4, 1e-1),
    ("resnet50", "conv4_block6_out", 2e-4, 1e-2),
    ("resnet50", "conv4_block6_out", 5e-4, 1e-2),
    ("resnet50", "conv3_block4_out", 2e-4, 1e-2),
    ("resnet50", "conv3_block4_out", 5e-4, 1e-2),
    ("resnet50", "conv4_block6_out", 2e-4, 1e-1),
    ("vgg16", "block4_pool", 1e-4, 1e-2),
    ("vgg16", "block4_pool", 3e-4, 1e-2),
    ("vgg16", "block3_pool", 1e-4, 1e-2),
    ("vgg16", "block3_pool", 3e-4, 1e-2),
    ("vgg16", "block4_pool", 1e-4, 1e-1),
]
KEY = ["backbone", "boundary", "finetune_rate", "weight_decay", "fold"]
RECIPE = {"crop": 0.875, "views": 1, "logit_adjustment": 0.5, "finetune_epochs": 8}


def parts() -> pd.DataFrame:
    """Deal the groups of every class into parts; return file, label and part of each image."""
    from fruitveg_tl.data import audit, registry, resplit
    from fruitveg_tl.models import weights
    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.models.network import build_network
    from fruitveg_tl.training.inference import Inference

    dataset = registry.load("grocery")
    rows = np.flatnonzero(dataset.index["split"] != "test")
    images = dataset.index.iloc[rows].reset_index(drop=True)
    entry = BACKBONES["mobilenetv2"]
    network = build_network(entry, 2, SIZE, weights.resolve(entry).values)
    whole = Inference(network.prefix), Inference(network.pool)
    features = whole[1].predict(whole[0].predict(dataset.pixels(SIZE, RECIPE["crop"])[rows]))
    fine = images["path"].map(lambda path: Path(path).parent.name)
    shelf = np.zeros(len(images), int)
    for name in sorted(set(fine)):
        members = np.flatnonzero(fine == name)
        count = max(2, len(members) // IMAGES_A_CLUSTER)
        cluster = AgglomerativeClustering(count, metric="cosine", linkage="average")
        shelf[members] = shelf.max() + 1 + cluster.fit_predict(features[members])
    # What shares a cluster or a duplicate is one group: chains of both join.
    duplicates = audit.duplicates(dataset, dataset.pixels(resplit.SIZE))[["first", "second"]]
    first = pd.Series(rows).groupby(shelf).transform("first")
    pairs = pd.concat([duplicates, pd.DataFrame({"first": first, "second": rows})])
    group = pd.Series(audit.duplicate_groups(pairs, len(dataset.index))[rows])
    rng = np.random.default_rng(SEED)
    part = np.zeros(len(images), int)
    for label in sorted(set(images["label"])):
        own = images["label"] == label
        for number, dealt in enumerate(resplit.equal_parts(group[own].value_counts(), PARTS, rng)):
            part[own & group.isin(dealt)] = number
    files = [str(dataset.root / path) for path in images["path"]]
    return pd.DataFrame({"file": files, "label": images["label"], "part": part})


def lay(folder: Path, images: pd.DataFrame, fold: int) -> None:
    """Link the images into split folders: a third to be scored on, one more part to choose by."""
    each = PARTS // FOLDS
    held_out = range(each * fold, each * (fold + 1))
    chosen_by = (each * (fold + 1)) % PARTS
    for number, image in enumerate(images.itertuples()):
        split = "validation" if image.part == chosen_by else "train"
        split = "test" if image.part in held_out else split
        link = folder / split / image.label / f"{number:04d}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image.file)


def train(folder: Path, candidate: tuple, fold: int) -> dict:
    """Train one candidate on one fold; return its row of the log."""
    from fruitveg_tl import results
    from fruitveg_tl.config import FINETUNED, PROBE, RunConfig
    from fruitveg_tl.run import train_and_evaluate
    from fruitveg_tl.utils import runtime

    backbone, boundary, rate, decay = candidate
    config = RunConfig(
        str(folder),
        backbone,
        boundary=boundary,
        finetune_rate=rate,
        weight_decay=decay,
        seed=SEED,
        **RECIPE,
    )
    begin = time.perf_counter()
    run = results.load(train_and_evaluate(config))
    scores = {
        f"{name} {metric}": round(run.scores[stage][key], 4)
        for name, stage in (("probe", PROBE), ("fine-tuned", FINETUNED))
        for metric, key in (("accuracy", "accuracy"), ("loss", "loss"), ("F1", "f1_macro"))
    }
    shutil.rmtree(run.folder)
    return (
        dict(zip(KEY, (*candidate, fold), strict=True))
        | scores
        | {
            "alpha": run.provenance["interpolation"]["alpha"],
            "weights": run.weights,
            "seconds": round(time.perf_counter() - begin),
            "commit": runtime.commit()[:9],
        }
    )


def main() -> None:
    """Train what the log lacks, then print the mean of each candidate over the folds."""
    HOME.mkdir(exist_ok=True)
    os.environ["FRUITVEG_HOME"] = str(HOME)  # before the package reads it
    log = pd.read_csv(LOG) if LOG.exists() else pd.DataFrame(columns=KEY)
    images = parts()
    for fold in range(FOLDS):
        folder = HOME / f"fold{fold}"
        if not folder.exists():
            lay(folder, images, fold)
    for candidate in CANDIDATES:
        for fold in range(FOLDS):
            wanted = (*candidate, fold)
            if (log[KEY] == wanted).all(axis=1).any():
                continue
            row = train(HOME / f"fold{fold}", candidate, fold)
            log = pd.concat([log, pd.DataFrame([row])], ignore_index=True)
            log.to_csv(LOG, index=False)
            print(row, flush=True)
    print(log.groupby(KEY[:-1], sort=False).mean(numeric_only=True).round(4).to_string())


if __name__ == "__main__":
    main()
