"""What the notebooks share: the experiment and its runs; how text, tables and figures are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from fruitveg_tl import config
from fruitveg_tl.config import RunConfig
from fruitveg_tl.data import registry
from fruitveg_tl.data.dataset import Dataset
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.weights import BUNDLED, MAKESHIFT, RANDOM, card, training_seconds
from fruitveg_tl.profiles import PROFILES
from fruitveg_tl.reporting import style
from fruitveg_tl.results import MODEL, Run
from fruitveg_tl.run import train_and_evaluate
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.markdown import escaped

RUNS = "application/vnd.fruitveg-tl.runs+json"  # type of an output that no reader is shown


@dataclass(frozen=True)
class Experiment:
    """Images, settings and seeds that a notebook is about.

    Attributes:
        name: of the dataset, e.g. "grocery".
        label_level: "coarse" or "fine"; None for the data set's own.
        settings: further fields of `RunConfig`.
        seeds: one run for each.

    Raises:
        InputError: naming a setting that makes no sense.
    """

    name: str
    label_level: str | None
    settings: dict
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        # Before an image is decoded or a network built by such a setting.
        RunConfig(self.name, next(iter(BACKBONES)), self.label_level, **self.settings)

    @cached_property
    def dataset(self) -> Dataset:
        """The images."""
        fold = self.settings.get("resplit", RunConfig.resplit)
        return registry.load(self.name, self.label_level, fold=fold)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.settings.get("size", RunConfig.size)

    @cached_property
    def pixels(self) -> np.ndarray:
        """The images as the experiment's networks see them, see `Dataset.pixels`."""
        return self.dataset.pixels(self.size, self.settings.get("crop", RunConfig.crop))

    @property
    def as_distributed(self) -> Dataset:
        """The images in the splits that they came in, to look at: classes may lack some."""
        return registry.load(self.name, self.label_level, complete=False)

    @property
    def origin(self) -> pd.DataFrame:
        """Which images, and which code, the figures of a notebook come from."""
        facts = {"images": self.dataset.name, "SHA-256": self.dataset.digest} | runtime.origin()
        return pd.Series(facts, name="this notebook").to_frame()

    def run(self, backbone: str, networks: int = 0, **changes) -> list[str]:
        """Return the folder names of the finished runs, one per seed, computing what is missing.

        Args:
            backbone: e.g. "vgg16".
            networks: of how many runs, the first ones, the trained network is needed too. Networks
                are not kept in Git, so where one is missing the run is repeated.
            changes: fields of `RunConfig` that differ from the experiment's, e.g.
                strategy="scratch".
        """
        folders: list[Path] = []
        for seed in self.seeds:
            fields = {"label_level": self.label_level, "seed": seed} | self.settings | changes
            run = RunConfig(self.name, backbone, **fields)
            folder = train_and_evaluate(run)
            if len(folders) < networks and not (folder / MODEL).exists():
                folder = train_and_evaluate(run, force=True)
            folders.append(folder)
        return [folder.name for folder in folders]


def configure_experiment(
    dataset: str,
    label_level: str | None = None,
    seeds: Sequence[int] = (0,),
    **settings,
) -> Experiment:
    """Return the experiment a notebook asks for, or the one that variables ask for instead.

    The data set's profile holds its recipe; what is given here differs from that.
    FRUITVEG_DATASET overrides the images: only their profile counts then, with one seed.
    FRUITVEG_SEEDS and the variables of `config.OVERRIDES`, e.g. FRUITVEG_SIZE, override the rest.

    Args:
        dataset: a name from `registry.DATASETS` or the path of a folder.
        label_level: "coarse" or "fine", for grocery only.
        seeds: one run for each.
        settings: further fields of `RunConfig`.

    Raises:
        InputError: naming the variable that is unknown or cannot be used.
    """
    config.refuse_unknown_variables()
    name = config.variable("DATASET") or dataset
    if name != dataset:
        settings, seeds, label_level = {}, (0,), None
    settings = PROFILES.get(name, {}) | settings | config.overrides()
    label_level = settings.pop("label_level", label_level)
    return Experiment(name, label_level, settings, config.seeds(seeds))


def second_set(experiment: Experiment) -> Experiment:
    """Return the same experiment on the images of FRUITVEG_OTHER, by default the Kaggle set's."""
    name = config.variable("OTHER") or "fruits-veges"
    return replace(experiment, name=name, label_level=None)


def record(done: Mapping[str, Sequence[str]]) -> None:
    """Note the runs that a notebook reads, for whoever checks its numbers; readers see a count."""
    count = len({name for names in done.values() for name in names})
    display({RUNS: dict(done), "text/plain": f"{count} finished runs"}, raw=True)


def say(text: str) -> None:
    """Show Markdown whose numbers come from variables."""
    display(Markdown(text))


def caveat(run: Run) -> None:
    """Say loudly what a network started from, where that is not what Keras publishes."""
    if run.weights == RANDOM:
        say(
            f"> **Not transfer.** {run.backbone_name} starts from random numbers here. Its figures "
            "show the procedure, and what it gives when nothing is transferred; they say nothing "
            f"about how good the pre-trained {run.backbone_name} is."
        )
    if run.weights == BUNDLED:
        about = card(BACKBONES[run.config.backbone])
        say(
            f"> **Bundled weights.** {run.backbone_name} starts from this project's own weights, "
            f"not from Keras' ImageNet ones. They come from {about['images']}, in "
            f"{training_seconds(about) / 60:.0f} minutes of training, and put "
            f"{about['held_out_accuracy_rounded']:.0%} of the images held out into the right "
            "class. ImageNet weights know far more; so would what they transfer."
        )


def show(figure: Figure, name: str, weights: str = "") -> None:
    """Save a figure under `figures/` and show it.

    Args:
        figure: from `plots`.
        name: of the file, without ending.
        weights: what the network shown started from, as results say it.
    """
    if weights in MAKESHIFT:
        figure.suptitle(weights, fontsize=8)
    display(Image(filename=style.save_figure(figure, name)))


def table(frame: pd.DataFrame, digits: int = 3, index: bool = True) -> None:
    """Show a table that reads well on screen, in Git and on paper; its texts are no Markdown."""
    frame = frame.map(_as_text).rename(index=_as_text, columns=_as_text)
    frame = frame.rename_axis(index=_as_text, columns=_as_text)
    # Names stay as they are, also where they look like numbers.
    named = index and len(frame) and not pd.api.types.is_numeric_dtype(frame.index)
    text = frame.to_markdown(
        index=index, floatfmt=f".{digits}f", disable_numparse=[0] if named else False
    )
    display(Markdown(text))


def _as_text(value: object) -> object:
    return escaped(value) if isinstance(value, str) else value
