"""Shared code of the notebooks: the experiment and its runs; display of tables and figures."""

import re
from base64 import b64decode
from dataclasses import dataclass, replace
from functools import cached_property

import nbformat
import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from fruitveg_tl import config, studies
from fruitveg_tl.config import PATHS, PROFILES, RunConfig, Selection, Strategy, divided
from fruitveg_tl.data import registry
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.models.backbones import (
    BACKBONES,
    BUNDLED,
    MAKESHIFT,
    RANDOM,
    Backbone,
    with_defaults,
)
from fruitveg_tl.reporting import plots
from fruitveg_tl.reporting.readme import tagged_outputs
from fruitveg_tl.reporting.tables import escaped
from fruitveg_tl.studies import MODEL, Run
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.errors import InputError

STUDIED = "fruits-veges-partial"  # the second set of the committed studies


@dataclass(frozen=True)
class Experiment:
    """The images, settings and seeds of a notebook; raises InputError if a setting is invalid.

    Attributes:
        name: of the dataset, e.g. "grocery".
        label_level: "coarse" or "fine"; None for the data set's own.
        settings: further fields of `Selection` and `RunConfig`.
        seeds: one run for each.
    """

    name: str
    label_level: str | None
    settings: dict
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        # Checks the settings before any expensive step.
        which, how = divided(self.settings)
        Selection(self.name, self.label_level, **which)
        RunConfig(next(iter(BACKBONES)), **how)

    @property
    def title(self) -> str:
        """Name of the images, e.g. "grocery-coarse"."""
        return registry.title(self.name, self.label_level, self.settings.get("resplit", 0))

    @cached_property
    def images(self) -> Images:
        """The images."""
        return registry.load(self.name, self.label_level, fold=self.settings.get("resplit", 0))

    @property
    def classes(self) -> list[str]:
        """All labels, sorted."""
        return self.committed[0].classes if self.committed else list(self.images.classes)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.settings.get("size", RunConfig.size)

    @cached_property
    def pixels(self) -> np.ndarray:
        """The images at the networks' size and crop, see `Images.pixels`."""
        return self.images.pixels(self.size, self.settings.get("crop", RunConfig.crop))

    @property
    def as_distributed(self) -> Images:
        """The images in their published splits, in which classes may be missing."""
        return registry.load(self.name, self.label_level, complete=False)

    @staticmethod
    def committed_as(title: str) -> list[Run]:
        """Return the runs of the committed studies on images of this name."""
        return [run for run in studies.committed_runs() if run.row["images"] == title]

    @property
    def origin(self) -> pd.DataFrame:
        """The images and the code behind the notebook's figures."""
        known = [run.row["content"] for run in self.committed]
        content = known[0] if known else self.images.digest
        runs = "committed with the project (data/results)" if known else "of this machine"
        return _origin({"images": self.title, "SHA-256": content, "runs": runs})

    @cached_property
    def committed(self) -> list[Run]:
        """Committed runs on these images, by content: a user's folder may have a study's name."""
        known = self.committed_as(self.title)
        if not known or self.name in registry.DATASETS or not registry.on_disk(self.name):
            return known
        return [run for run in known if run.row["content"] == self.images.digest]

    def run(self, backbone: str, images: Images | str | None = None, **changes) -> list[Run]:
        """Return the finished runs, one per seed; train missing ones.

        Runs of this machine on the same images take precedence over committed ones, which are read
        even if this machine lacks the images and weights. `images` replaces the experiment's, or
        names a committed study's. `changes` are settings that differ from the experiment's.
        """
        which, how = divided(self.settings | changes)
        asked = replace(self, settings=self.settings | changes) if "resplit" in changes else self
        wanted = with_defaults(RunConfig(backbone, **how))
        choice = "random" if wanted.strategy == Strategy.SCRATCH else which.get("weights", "auto")
        if isinstance(images, Images):
            known = self.committed_as(images.name)
            known = [run for run in known if run.row["content"] == images.digest]
        else:
            known = self.committed_as(images) if images else asked.committed
        labels = which.get("train_images_per_class")
        if committed := self._complete(known, wanted, choice, labels):
            if isinstance(images, str):
                return committed
            content = {run.row["content"] for run in committed}
            here = [run for run in studies.own_runs() if run.row["content"] in content]
            return self._complete(here, wanted, choice, labels) or committed
        if isinstance(images, str):
            raise InputError(f"{images}: no committed runs with these settings")
        from fruitveg_tl.run import jobs, train

        selection = Selection(asked.name, asked.label_level, **which)
        configs = [replace(wanted, seed=seed) for seed in self.seeds]
        return [train(*job) for job in jobs(images or asked.images, selection, configs)]

    def _complete(
        self, runs: list[Run], config: RunConfig, choice: str, labels: int | None
    ) -> list[Run]:
        """Return one run per seed, all from the same weights; empty if a seed is missing."""
        for weights in dict.fromkeys(run.weights for run in runs):
            if (weights == RANDOM) == (choice == "random"):
                alike = [run for run in runs if run.weights == weights]
                found = studies.matching(alike, config, labels)
                if set(self.seeds) <= found.keys():
                    return [found[seed] for seed in self.seeds]
        return []


def configure_experiment(
    dataset: str,
    seed: int = 0,
    size: int | None = None,
    epochs: int | None = None,
    resplit: int = 0,
    seeds: int = 1,
) -> Experiment:
    """Return the experiment for a notebook's parameters; None is the recipe's value.

    On the study's images with default parameters it has `seeds` seeds, otherwise only `seed`. See
    `load_images` for `dataset`; `resplit`, 1 to 5, creates new splits. Raises InputError if a
    parameter is invalid.
    """
    name = registry.located(dataset, PATHS.root)
    asked = {"size": size, "finetune_epochs": epochs, "resplit": resplit or None}
    changes = {setting: value for setting, value in asked.items() if value is not None}
    studied = bool(Experiment.committed_as(registry.title(name))) and not (seed or changes)
    settings = PROFILES.get(name, {}) | changes
    return Experiment(name, None, settings, tuple(range(seeds)) if studied else (seed,))


def second_set(experiment: Experiment) -> Experiment:
    """Return the experiment on the images of FRUITVEG_OTHER, by default the study's second set."""
    return replace(experiment, name=config.variable("OTHER") or STUDIED, label_level=None)


def missing(experiment: Experiment, *runs: Run) -> str | None:
    """Say in Markdown what `experiment` or `runs` need and this machine lacks; None if nothing."""
    if not registry.on_disk(experiment.name):
        way = (
            "`python -m fruitveg_tl data --dataset grocery` fetches them in a few minutes"
            if experiment.name in registry.GROCERY
            else "set `FRUITVEG_OTHER` to their folder"
        )
        return f"The images of {escaped(experiment.title)} are not on this machine: {way}."
    for run in runs:
        if not (run.folder / MODEL).exists():
            if not run.row["command"]:
                return "Networks are not kept in Git."
            minutes = max(1, round(len(experiment.seeds) * run.training_seconds / 60))
            seeds = f"--seeds {' '.join(map(str, experiment.seeds))}"
            command = re.sub(r"--seeds \d+", seeds, run.row["command"])
            return f"Networks are not kept in Git: `{command}` trains in about {minutes} min."
    return None


def show_committed(reason: str, notebook: str, tag: str) -> None:
    """Show the committed output of a notebook's tagged cell, and the `reason` from `missing`."""
    say(f"> {reason} This is what the project's authors saw.")
    read = nbformat.read(PATHS.notebooks / f"{notebook}.ipynb", 4)
    for data in tagged_outputs(read, tag) or ():
        text = data.get("text/markdown", "")
        if text.startswith("> "):
            continue  # an earlier reason
        for kind in ("image/png", "image/jpeg"):
            if kind in data:
                display(Image(b64decode(data[kind])))
        if text:
            say(text)


def say(text: str) -> None:
    """Show Markdown whose numbers come from variables."""
    display(Markdown(text))


def caveat(backbone: Backbone, weights: str) -> None:
    """Warn that a network starts from makeshift weights, by their name in tables."""
    if weights == RANDOM:
        say(
            f"> **Not transfer.** {backbone.name} starts from random numbers here. Its figures "
            "show the procedure, and what it gives when nothing is transferred; they say nothing "
            f"about how good the pre-trained {backbone.name} is."
        )
    if weights == BUNDLED:
        from fruitveg_tl.models.weights import card

        about = card(backbone)
        say(
            f"> **Bundled weights.** {backbone.name} starts from this project's own weights, "
            f"not from Keras' ImageNet ones. They come from {about['images']}, in "
            f"{about['seconds_in_all'] / 60:.0f} minutes of training, and put "
            f"{about['held_out_accuracy_rounded']:.0%} of the images held out into the right "
            "class. ImageNet weights know far more; so would what they transfer."
        )


def load_images(dataset: str, resplit: int = 0) -> Images:
    """Load a set of `registry.DATASETS`, or a folder, relative to the project's root."""
    return registry.load(registry.located(dataset, PATHS.root), fold=resplit)


def origin(images: Images) -> pd.DataFrame:
    """Return the images and the code behind a notebook's figures."""
    return _origin({"images": images.name, "SHA-256": images.digest})


def _origin(facts: dict[str, str]) -> pd.DataFrame:
    return pd.Series(facts | runtime.origin(), name="this notebook").to_frame()


def settings(recipe: RunConfig) -> pd.DataFrame:
    """Return every setting of a recipe with its meaning."""
    values = recipe.to_dict()
    rows = [
        (field.name, values[field.name], field.metadata["help"])
        for field in config.settings()
        if field.name in values
    ]
    return pd.DataFrame(rows, columns=["setting", "value", "what it is"]).astype(str)


def study_seeds(run: Run) -> list[Run]:
    """Return the committed runs that differ from this one only in the seed."""
    alike = [
        other for other in studies.committed_runs() if other.row["content"] == run.row["content"]
    ]
    alike = [other for other in alike if other.weights == run.weights]
    found = studies.matching(alike, run.config, run.row["images per class"])
    return [found[seed] for seed in sorted(found)]


def show(figure: Figure, name: str, weights: str = "") -> None:
    """Save a figure by `plots.save_figure` and show it; makeshift `weights` are named above it."""
    if weights in MAKESHIFT:
        figure.suptitle(weights, fontsize=8)
    display(Image(filename=plots.save_figure(figure, name)))


def table(frame: pd.DataFrame, digits: int = 3, index: bool = True) -> None:
    """Show a table as Markdown, with its texts escaped."""
    frame = frame.map(_as_text).rename(index=_as_text, columns=_as_text)
    frame = frame.rename_axis(index=_as_text, columns=_as_text)
    # Keep names that look like numbers unchanged.
    named = index and len(frame) and not pd.api.types.is_numeric_dtype(frame.index)
    text = frame.to_markdown(
        index=index, floatfmt=f".{digits}f", disable_numparse=[0] if named else False
    )
    display(Markdown(text))


def _as_text(value: object) -> object:
    return escaped(value) if isinstance(value, str) else value
