"""What may differ by backbone, one factor at a time, by grouped cross-validation.

Every candidate is trained by the study's recipe (last epoch, all views) on two thirds of grocery's
training and validation images and scored on the third that it has not seen. Groups stay together:
near duplicates, and what looks like one visit to one shelf (images of one fine class whose frozen
features cluster). No test image is opened: only files that the other two lists name are linked.

Started again, it goes on: every training is a row of `factors.csv` at once.

    FRUITVEG_DATA=… FRUITVEG_WEIGHTS=… .venv/bin/python data/tuning/tune.py BACKBONE
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering

HOME = Path(tempfile.gettempdir()) / "fruitveg-factors"  # links, decoded images, activations
FILE = Path(__file__).with_name("factors.csv")
FOLDS, SEED, IMAGES_A_CLUSTER = 3, 0, 4
VALIDATION = 0.15  # fraction of what is not held out
RACE = 0.01  # of accuracy: what is further behind after a fold is out (Maron & Moore 1994)
BEFORE = {"mobilenetv2": "block_2_add", "resnet50": "conv3_block4_out", "vgg16": "block3_pool"}
KEY, SCORE = ["backbone", "settings", "fold"], "fine-tuned accuracy"


def factors(backbone) -> list[tuple[str, list]]:
    """Return the factors in the order in which they are decided, with the values to try."""
    rate = backbone.finetune_rate
    return [
        ("finetune_rate", [rate / 2, 2 * rate, 4 * rate, 8 * rate]),
        ("finetune_epochs", [15, 20]),
        ("boundary", [BEFORE[backbone.key]]),
    ]


def images():
    """Return grocery's training and validation images, without the test split."""
    from fruitveg_tl.data import grocery, registry

    folder = HOME / "images"
    if not folder.exists():
        root = grocery.upstream_root(Path(os.environ["FRUITVEG_DATA"]))
        found = grocery.from_lists(root, "coarse", ("Fruit", "Vegetables"))
        for number, (file, label, split) in enumerate(found):
            link = folder / label / f"{file.parent.name}--{number:04d}.jpg"
            if split != "test":
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    return registry.load(str(folder), complete=False)


def folds(whole) -> list:
    """Deal the groups of every class; return the images of each fold, held-out ones as test."""
    from fruitveg_tl.data import audit, resplit

    first = pd.Series(np.arange(len(whole.index))).groupby(visits(whole)).transform("first")
    alike = pd.DataFrame({"first": first, "second": np.arange(len(whole.index))})
    duplicates = audit.duplicates(whole, whole.pixels(resplit.SIZE))[["first", "second"]]
    groups = audit.duplicate_groups(pd.concat([duplicates, alike]), len(whole.index))
    split = np.full((FOLDS, len(groups)), "train", dtype="<U5")
    rng = np.random.default_rng(SEED)
    for label in range(len(whole.classes)):
        own = whole.targets == label
        sizes = pd.Series(groups[own]).value_counts()
        parts = resplit.equal_parts(sizes, FOLDS, rng)
        rng.shuffle(parts)  # the largest groups of all classes are not one fold's
        for fold, held_out in enumerate(parts):
            rest = sizes.drop(held_out).sample(frac=1, random_state=rng)
            chosen_by = rest.index[(rest.cumsum() - rest / 2) <= max(VALIDATION * rest.sum(), 1)]
            chosen_by = chosen_by if len(chosen_by) else rest.index[[rest.argmin()]]
            split[fold, own & np.isin(groups, held_out)] = "test"
            split[fold, own & np.isin(groups, chosen_by)] = "val"
    return [whole.with_splits(part, f"fold{fold}") for fold, part in enumerate(split)]


def visits(whole) -> np.ndarray:
    """Number the clusters of alike images within each fine class."""
    from fruitveg_tl.models import weights
    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.models.network import build_network
    from fruitveg_tl.training.inference import Inference

    entry = BACKBONES["mobilenetv2"]
    network = build_network(entry, 2, 224, weights.resolve(entry).values)
    boundary = Inference(network.frozen).predict(whole.pixels(224, 0.875))
    features = Inference(network.pool).predict(boundary)
    fine = whole.index["path"].str.split("/").str[-1].str.split("--").str[0].to_numpy()
    visit = np.zeros(len(fine), int)
    for name in sorted(set(fine)):
        members = np.flatnonzero(fine == name)
        count = max(2, len(members) // IMAGES_A_CLUSTER)
        cluster = AgglomerativeClustering(count, metric="cosine", linkage="average")
        visit[members] = visit.max() + 1 + cluster.fit_predict(features[members])
    return visit


def train(fold, source, backbone: str, settings: dict) -> dict:
    """Train one candidate on one fold; return its scores on the images held out."""
    from fruitveg_tl import run
    from fruitveg_tl.config import FINETUNED, PATHS, PROBE, RECIPE, RunConfig
    from fruitveg_tl.utils import runtime
    from fruitveg_tl.utils.storage import remove

    begin = time.perf_counter()
    trained = run.train(fold, source, RunConfig(backbone, **(RECIPE | settings)))
    scores = {
        f"{stage} {name}": round(trained.scores[stage][name], 4)
        for stage in (PROBE, FINETUNED)
        for name in ("accuracy", "loss", "f1_macro")
    }
    row = scores | {"frozen seconds": round(trained.seconds["frozen"])}
    row |= {"fine-tuning seconds": round(trained.seconds[FINETUNED])}
    row |= {"seconds": round(time.perf_counter() - begin), "commit": runtime.commit()[:9]}
    remove(trained.folder)
    remove(PATHS.cache / "fits")
    return row


def accuracies(log: pd.DataFrame, backbone: str, settings: dict) -> pd.Series:
    """Return a candidate's accuracy by fold."""
    own = (log["backbone"] == backbone) & (log["settings"] == json.dumps(settings))
    return log[own].set_index("fold")[SCORE]


def main(backbone: str) -> None:
    """Train what the table lacks; adopt what is ahead by more than a standard error."""
    os.environ["FRUITVEG_HOME"] = str(HOME)
    HOME.mkdir(exist_ok=True)
    from fruitveg_tl.models import weights
    from fruitveg_tl.models.backbones import BACKBONES, MAKESHIFT

    entry, dealt = BACKBONES[backbone], folds(images())
    source = weights.resolve(entry)
    if source.source in MAKESHIFT:
        raise SystemExit(f"{source.source}: set FRUITVEG_WEIGHTS to the folder of Keras' weights")
    log = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=[*KEY, SCORE])
    best: dict = {}
    for factor, values in [("recipe", [None]), *factors(entry)]:
        ahead = 0.0
        tried = best
        for value in values:
            settings = best | ({factor: value} if value is not None else {})
            for number, fold in enumerate(dealt):
                known, ours = accuracies(log, backbone, best), accuracies(log, backbone, settings)
                if number in ours.index:
                    continue
                if len(ours) and (ours - known).mean() < -RACE:
                    print(f"{settings}: left the race before fold {number}", flush=True)
                    break
                row = dict(zip(KEY, (backbone, json.dumps(settings), number), strict=True))
                row |= train(fold, source, backbone, settings)
                log = pd.concat([log, pd.DataFrame([row])], ignore_index=True)
                log.to_csv(FILE, index=False)
                print(row, flush=True)
            gains = accuracies(log, backbone, settings) - accuracies(log, backbone, best)
            error = gains.std() / np.sqrt(FOLDS)
            if len(gains.dropna()) == FOLDS and gains.mean() > max(error, ahead):
                ahead, tried = gains.mean(), settings
            print(f"{settings}: {gains.mean():+.4f} ± {error:.4f}", flush=True)
        best = tried
    print("adopted:", best)


if __name__ == "__main__":
    main(sys.argv[1])
