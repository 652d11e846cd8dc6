"""fruitveg-tl: a transfer-learning study of fruit and vegetable images.

The notebooks tell the story; this package holds the logic. A tour in reading order:

    config      what a run is, the recipes, where files are, what the environment may change
    data/       images in: data sets, decoding, audit, augmentation
    models/     networks in: backbones, their weights, the network built on each
    training/   the frozen part, computed once; the training of the rest
    run         one run from images to results, top to bottom
    studies     finished runs as tables, read without Keras
    evaluation/ numbers out: metrics, significance, baselines, Grad-CAM
    reporting/  what a reader sees: tables, figures, notebooks, the report
    classifier, export, grid   a saved network in a program, or elsewhere; many runs at a time
    cli            the command line
    utils/      what every layer may use

Nothing imports a layer above its own; `fruitveg_tl/README.md` draws them and lists every module.
"""

import logging
import os
import warnings

# TensorFlow reads these once, at import. oneDNN is off by default on processors without
# AVX512-VNNI, yet it was faster there for all three backbones.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Hides false retracing warnings. A filter, because TensorFlow resets the level in notebooks.
logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)
# kagglehub asks for a widget that text progress bars do not need.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"


def __getattr__(name: str):
    # Imported only when used, so that `import fruitveg_tl` stays fast.
    if name == "Classifier":
        from fruitveg_tl.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
