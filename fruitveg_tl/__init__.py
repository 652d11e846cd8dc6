"""fruitveg-tl: a transfer-learning study of fruit and vegetable images.

The notebooks tell the story; this package holds the logic. A tour in reading order:
`config` (what a run is), `datasets` and `images` (images in), `backbones` and
`weights` (networks in), `features` and `training` (frozen, then unfrozen), `metrics` and
`results` (numbers out), `study` (one run from start to end), `cli`. For the notebooks: `notebook`,
`audit`, `gradcam`, `costs`, `plots`; `report` executes and binds them.
"""

import logging
import os
import warnings

# TensorFlow reads these once, at import. oneDNN is off by default on processors without
# AVX512-VNNI, where it was still the faster choice for all three backbones.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Its retracing warning counts the first calls of different networks as calls of one function. (A
# filter, because TensorFlow sets the level itself when it is imported in a notebook.)
logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)
# kagglehub asks for a widget that text progress bars do without.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
