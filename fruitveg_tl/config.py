"""Settings, recipes, environment variables and paths.

Every setting is declared once, as a field of `Selection` or `RunConfig`.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

from fruitveg_tl.utils.errors import InputError


class Split(StrEnum):
    """The splits; `TRAIN`, `VAL` and `TEST` for short."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Stage(StrEnum):
    """What a run evaluates; `PROBE`, `FINETUNED` and `SCRATCH` for short."""

    PROBE = "linear probe"
    FINETUNED = "fine-tuned"
    SCRATCH = "scratch"


class Strategy(StrEnum):
    """How a run trains: `RunConfig.strategy`."""

    TRANSFER = "transfer"
    SCRATCH = "scratch"


SPLITS = TRAIN, VAL, TEST = tuple(Split)
STAGES = PROBE, FINETUNED, SCRATCH = tuple(Stage)
SYNTHETIC = "synthetic"  # the default data set
RESPLIT = "--resplit (resplit = 1 in notebooks)"  # as messages name it


def _setting(default: Any, kind: type, text: str, ablation: bool = False, **more: Any) -> Any:
    """Declare a field: its type, its meaning, and `least`, `most` or `choices`.

    A run records an ablation only if it uses it, so that a new ablation keeps older runs valid.
    """
    metadata = {"kind": kind, "help": text, "ablation": ablation}
    return field(default=default, metadata=metadata | more)


class _Checked:
    """Checks every field's value against its `_setting`."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            if problem := _problem(setting, getattr(self, setting.name)):
                raise InputError(f"{setting.name}: {problem}")


@dataclass(frozen=True)
class Selection(_Checked):
    """Names of the images and source weights to use; an InputError names the valid values."""

    dataset: str = _setting(MISSING, str, "name of a data set, or a folder of class folders")
    label_level: str | None = _setting(
        None, str, "level of grocery's labels (default: coarse)", choices=("coarse", "fine")
    )
    weights: str = _setting(
        "auto", str, "auto (FRUITVEG_WEIGHTS, Keras' cache, Keras' download, the bundled ones), "
        "bundled, random, or a file",
    )  # fmt: skip
    resplit: int = _setting(
        0, int, "create new splits, duplicates together: 1 to 5, each with another fifth to test "
        "on (without a number: 1)", least=0, most=5, const=1,
    )  # fmt: skip
    train_images_per_class: int | None = _setting(
        None, int, "number of training images per class (default: all)", ablation=True, least=1
    )


@dataclass(frozen=True)
class RunConfig(_Checked):
    """How to train a network; `python -m fruitveg_tl run --help` describes each field.

    None means the default of the backbone's registry entry. An InputError names the valid values.
    """

    backbone: str = _setting(MISSING, str, "name of a network of keras.applications")
    strategy: str = _setting(
        str(Strategy.TRANSFER), str, "transfer: linear probe, then fine-tuning (Kumar et al. "
        "2022); scratch: random initialisation, all layers trained",
        choices=tuple(map(str, Strategy)),
    )  # fmt: skip
    size: int = _setting(224, int, "side of the images in pixels", least=32)
    crop: float = _setting(
        1.0, float, "fraction of each side kept around the centre; 0.875 is usual for ImageNet",
        least=0.05, most=1,
    )  # fmt: skip
    views: int = _setting(8, int, "cached augmented views of each training image", least=0)
    seed: int = _setting(
        0, int, "decides the head's initialisation and the order of images and views", least=0
    )
    batch_size: int = _setting(32, int, "images per step, in every phase", least=1)
    boundary: str | None = _setting(
        None, str, "name of the last layer that stays frozen (default: the backbone's)"
    )
    probe_epochs: int = _setting(60, int, "the most epochs of the linear probe", least=1)
    finetune_epochs: int = _setting(
        30, int, "the most epochs of fine-tuning, or of training from scratch", least=1
    )
    probe_rate: float = _setting(
        1e-3, float, "highest learning rate of the linear probe", least=1e-9
    )
    finetune_rate: float | None = _setting(
        None, float, "highest learning rate of fine-tuning (default: the backbone's)", least=1e-9
    )
    scratch_rate: float = _setting(
        1e-3, float, "highest learning rate of training from scratch", least=1e-9
    )
    mixup: float = _setting(
        0.4, float, "alpha of mixup after the probe (Zhang et al. 2018); 0 for none", least=0
    )
    patience: int = _setting(
        12, int, "epochs without a lower validation loss before the linear probe stops", least=1
    )
    weight_decay: float | None = _setting(
        None, float, "of AdamW (Loshchilov & Hutter 2019; default: the backbone's)", least=0
    )
    logit_adjustment: float = _setting(
        0.0, float, "tau of logit adjustment in the loss of both phases (Menon et al. 2021): 0 for "
        "none, 1 makes up for rare classes wholly", least=0, most=1,
    )  # fmt: skip
    probe_first: bool = _setting(
        True, bool, "train a linear probe before fine-tuning", ablation=True
    )
    update_batch_norm: bool = _setting(
        False, bool, "train BatchNorm behind the boundary, statistics included: a common mistake "
        "with few images", ablation=True,
    )  # fmt: skip
    divide_by_255: bool = _setting(
        False, bool, "divide by 255 for the backbone's own preprocessing: a common mistake",
        ablation=True,
    )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON; of the ablations, only those in use."""
        return {
            setting.name: getattr(self, setting.name)
            for setting in fields(self)
            if not setting.metadata["ablation"] or getattr(self, setting.name) != setting.default
        }


def settings(ablations: bool | None = None) -> tuple[Field, ...]:
    """Return the declared fields: only ablations (True), only others (False), or all (None)."""
    declared = (*fields(Selection), *fields(RunConfig))
    return tuple(f for f in declared if ablations in (None, f.metadata["ablation"]))


def divided(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into the fields of `Selection` and those of `RunConfig`."""
    names = {f.name for f in fields(Selection)}
    return (
        {name: value for name, value in values.items() if name in names},
        {name: value for name, value in values.items() if name not in names},
    )


def _problem(setting: Field, value: Any) -> str | None:
    """Return what is wrong with a value, or None."""
    kind, limits = setting.metadata["kind"], setting.metadata
    if value is None and setting.default is None:
        return None
    if not isinstance(value, (int, float) if kind is float else kind):
        return f"{value!r} is no {kind.__name__}"
    if value not in limits.get("choices", (value,)):
        return f"{value!r} is unknown; choose {' or '.join(limits['choices'])}"
    if "least" in limits and not value >= limits["least"]:
        return f"{value} is too small; at least {limits['least']}"
    if "most" in limits and value > limits["most"]:
        return f"{value} is too large; at most {limits['most']}"
    return None


# The study's recipe; data/tuning/README.md explains how it was chosen.
RECIPE = {"crop": 0.875, "logit_adjustment": 0.5, "finetune_epochs": 10}

PROFILES = {
    # A quick demonstration on any machine: small images, few epochs.
    SYNTHETIC: {
        "size": 96,
        "views": 1,
        "probe_epochs": 30,
        "finetune_epochs": 4,
        "finetune_rate": 1e-3,
        "mixup": 0.0,  # in 4 epochs the network does not overfit
    },
    "grocery": RECIPE,
    "grocery-all": RECIPE,
    "fruits-veges": RECIPE,
}


def recipe(dataset: str) -> dict[str, Any]:
    """Return the default of every setting: the profile's, else the field's own."""
    return {f.name: f.default for f in settings()} | PROFILES.get(dataset, {})


def ablations_in_words(used: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Name a run's ablations: declared ones in use, and settings of the recipe set to 0."""
    names = [f.name for f in settings(ablations=True) if used.get(f.name, f.default) != f.default]
    names += [name for name, value in used.items() if value == 0 and usual.get(name)]
    return ", ".join(f"{name} {used[name]}" for name in dict.fromkeys(names))


def command(used: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Return the command of a run, with every setting that differs from its images' recipe."""
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


# --- the environment ----------------------------------------------------------------------------

VARIABLES = {
    "FRUITVEG_HOME": "folder of data/, figures/, notebooks/ and report/ (default: the checkout)",
    "FRUITVEG_DATA": "a copy of the data set on disk, in the upstream layout",
    "FRUITVEG_WEIGHTS": "folder of weights files under Keras' names",
    "FRUITVEG_DATASET": "name or folder of the images, for every command",
    "FRUITVEG_ENGINE": "openvino or keras: the engine for the frozen part and predictions",
    "FRUITVEG_OTHER": "name or folder of a second set of images, for 01 and A5",
    "FRUITVEG_COMMIT": "set by `make notebooks` for its kernels: store figures for committing",
    "FRUITVEG_PROGRESS": "set by `report` for its kernels: descriptor to write progress to",
}


def variable(name: str) -> str | None:
    """Return the variable `FRUITVEG_{name}`; None if it is unset or empty."""
    assert f"FRUITVEG_{name}" in VARIABLES, name
    return os.environ.get(f"FRUITVEG_{name}") or None


@contextmanager
def temporary_variable(name: str, value: str) -> Iterator[None]:
    """Set the variable `FRUITVEG_{name}` for the block and the processes that it starts."""
    key = f"FRUITVEG_{name}"
    before = os.environ.get(key)
    os.environ[key] = value
    try:
        yield
    finally:
        del os.environ[key]
        if before is not None:
            os.environ[key] = before


def keras_home() -> Path:
    """Return Keras' download folder; Keras itself reads KERAS_HOME at import, else uses /tmp."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def environment() -> dict[str, str]:
    """Return the environment variables that a worker on another machine needs."""
    return {k: v for k, v in os.environ.items() if k.startswith(("FRUITVEG_", "KERAS_"))}


def refuse_unknown_variables() -> None:
    """Raise an InputError that names each unknown `FRUITVEG_` variable."""
    unknown = [k for k in os.environ if k.startswith("FRUITVEG_") and k not in VARIABLES]
    if unknown:
        guesses = {k: " or ".join(get_close_matches(k, VARIABLES, 2)) for k in unknown}
        lines = (
            f"{k}: unknown variable; did you mean {v or 'another'}?" for k, v in guesses.items()
        )
        raise InputError("\n".join(f"{line} notebooks/README.md lists all" for line in lines))


# --- paths --------------------------------------------------------------------------------------

CHECKOUT = Path(__file__).resolve().parents[1]


class Paths:
    """Every folder of the project, below `FRUITVEG_HOME` or else the checkout."""

    weights = CHECKOUT / "data" / "weights"  # the bundled ones
    root = property(lambda self: Path(variable("HOME") or CHECKOUT), doc="Parent of the others.")
    data = property(lambda self: self.root / "data", doc="Images, caches and results.")
    cache = property(lambda self: self.data / "cache", doc="Files that can be recomputed.")
    results = property(lambda self: self.data / "results", doc="The committed studies.")
    runs = property(lambda self: self.data / "runs", doc="The runs of this machine.")
    figures = property(lambda self: self.root / "figures", doc="Figures of the study.")
    notebooks = property(lambda self: self.root / "notebooks", doc="The numbered notebooks.")
    report = property(lambda self: self.root / "report", doc="The report and its sources.")


PATHS = Paths()
