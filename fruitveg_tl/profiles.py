"""The settings that go with a set of images: defaults below what is asked for."""

from collections.abc import Mapping
from typing import Any

from fruitveg_tl.config import SYNTHETIC, settings

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


def recipe(dataset: str) -> dict[str, Any]:
    """Return every setting as it is where nothing is asked for: the profile's, else the default."""
    return {f.name: f.default for f in settings()} | PROFILES.get(dataset, {})


def ablations_in_words(used: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Name what a run does otherwise than its recipe in order to learn what that is worth.

    These are the settings declared as ablations, and parts of the recipe that are off: 0 where
    it has more.

    Args:
        used: settings of a run; an ablation need not be among them where it is not in use.
        usual: the recipe, see `recipe`.
    """
    names = [f.name for f in settings(ablations=True) if used.get(f.name, f.default) != f.default]
    names += [name for name, value in used.items() if value == 0 and usual.get(name)]
    return ", ".join(f"{name} {used[name]}" for name in dict.fromkeys(names))
