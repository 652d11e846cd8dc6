"""The command that computes a run again."""

import shlex
from collections.abc import Mapping
from typing import Any

from fruitveg_tl.config import settings


def command(used: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Return the command of a run, with every setting that is not usual for its images.

    Args:
        used: fields of `config.Selection` and `config.RunConfig`.
        usual: the recipe of the images, see `profiles.recipe`.
    """
    own = {"dataset": "--dataset", "backbone": "--backbones", "seed": "--seeds"}
    words = ["python", "-m", "fruitveg_tl", "run"]
    for setting in settings():
        name = setting.name
        value = used.get(name, setting.default)
        if name not in own and value == usual.get(name, setting.default):
            continue
        option = own.get(name, "--" + name.replace("_", "-"))
        if setting.metadata["kind"] is bool:
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, str(value)]
    return shlex.join(words)
