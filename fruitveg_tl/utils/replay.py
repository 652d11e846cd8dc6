"""The command that computes a run again."""

import shlex

from fruitveg_tl.config import RunConfig, settings
from fruitveg_tl.profiles import recipe


def command(config: RunConfig) -> str:
    """Return a run's command, with every setting that its data set does not have by itself."""
    own = {"dataset": "--dataset", "backbone": "--backbones", "seed": "--seeds"}
    usual = recipe(config.dataset)
    words = ["python", "-m", "fruitveg_tl", "run"]
    for setting in settings():
        name, value = setting.name, getattr(config, setting.name)
        if name not in own and value == usual[name]:
            continue
        option = own.get(name, "--" + name.replace("_", "-"))
        if setting.metadata["kind"] is bool:
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, str(value)]
    return shlex.join(words)
