"""What bfloat16 in the frozen part costs training, on the folds of `tune.py`, without test images.

Every network is trained by the study's recipe, with two augmented views, on training images that
went through the frozen part in bfloat16 and in float32. Scores are those of the saved network in
float32 on the held-out fold; then the same network reads the fold with its frozen part in bfloat16.
Started again, it goes on: every training is a row of `precision.csv`.

    FRUITVEG_DATA=… FRUITVEG_WEIGHTS=… .venv/bin/python data/tuning/precision.py
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import tune

RECIPE = {"crop": 0.875, "views": 2, "logit_adjustment": 0.5, "finetune_epochs": 10}
KEY = ["backbone", "trained on", "fold"]
FILE = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Train what the table lacks."""
    os.environ["FRUITVEG_HOME"] = str(tune.HOME)  # before the package reads it
    tune.HOME.mkdir(exist_ok=True)
    from fruitveg_tl import run
    from fruitveg_tl.config import FINETUNED, PROBE, RunConfig
    from fruitveg_tl.data import registry
    from fruitveg_tl.models import weights
    from fruitveg_tl.models.backbones import BACKBONES
    from fruitveg_tl.utils import runtime

    whole, dealt = registry.load("grocery"), tune.splits()
    log = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=KEY)
    for key, backbone in list(BACKBONES.items()):
        source = weights.resolve(backbone)
        for fold in range(tune.FOLDS):
            split = whole.index["split"].where(whole.index["split"] != "test", "")
            split[split != ""] = dealt[f"fold {fold}"].replace({"validation": "val"}).to_numpy()
            images = whole.with_splits(split, f"grocery-fold{fold}")
            for rounded in (True, False):
                precision = "mixed_bfloat16" if rounded else "float32"
                if (log[KEY] == [key, precision, fold]).all(axis=1).any():
                    continue
                BACKBONES[key] = replace(backbone, frozen_bfloat16=rounded)
                trained = run.train(images, source, RunConfig(key, **RECIPE), force=True)
                tuned = trained.scores[FINETUNED]
                row = dict(zip(KEY, (key, precision, fold), strict=True)) | {
                    "held out": trained.counts["test"],
                    "probe accuracy": round(trained.scores[PROBE]["accuracy"], 4),
                    "accuracy in float32": round(tuned["accuracy"], 4),
                    "loss in float32": round(tuned["loss"], 4),
                    **in_bfloat16(trained, images),
                    "frozen seconds": round(trained.seconds["frozen"]),
                    "commit": runtime.commit()[:9],
                }
                log = pd.concat([log, pd.DataFrame([row])], ignore_index=True)
                log.to_csv(FILE, index=False)
                print(row, flush=True)


def in_bfloat16(run, images) -> dict[str, float]:
    """Compare a network's predictions with those of its frozen part computed in bfloat16."""
    from fruitveg_tl.training.inference import Inference
    from fruitveg_tl.utils.backend import keras

    model, config = run.load_model(), run.config
    boundary = model.get_layer(config.boundary).output
    frozen, upper = keras.Model(model.input, boundary), keras.Model(boundary, model.output)
    test = images.rows("test")
    pixels = images.pixels(config.size, config.crop)[test]
    plain, rounded = (
        Inference(upper).predict(Inference(frozen, precision).predict(pixels))
        for precision in ("float32", "mixed_bfloat16")
    )
    changed = plain.argmax(1) != rounded.argmax(1)
    return {
        "accuracy in bfloat16": round((rounded.argmax(1) == images.targets[test]).mean(), 4),
        "predictions changed": round(changed.mean(), 4),
        "largest difference": round(float(np.abs(plain - rounded).max()), 4),
    }


if __name__ == "__main__":
    main()
