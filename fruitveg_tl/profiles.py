"""The settings that go with a set of images: defaults below what is asked for."""

from fruitveg_tl.config import SYNTHETIC

# The study's recipe; data/tuning/README.md says what had been seen when it was chosen.
RECIPE = {"crop": 0.875, "logit_adjustment": 0.5, "finetune_epochs": 10}

PROFILES = {
    # For seeing everything work, anywhere: small images, few epochs.
    SYNTHETIC: {
        "size": 96,
        "views": 1,
        "probe_epochs": 30,
        "finetune_epochs": 4,
        "finetune_rate": 1e-3,
        "mixup": 0.0,  # in so few epochs there is nothing to hold back
    },
    "grocery": RECIPE,
    "grocery-all": RECIPE,
    "fruits-veges": RECIPE,
}
