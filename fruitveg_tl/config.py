"""What a run is, and where its files are."""

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass
class Paths:
    """Every folder of the project.

    Attributes:
        root: what the others lie below; `FRUITVEG_HOME`, else the checkout.
        weights: the weights that this project bundles: always the checkout's.
    """

    root: Path
    weights: Path = CHECKOUT / "data" / "weights"

    @property
    def data(self) -> Path:
        """Images, caches and results."""
        return self.root / "data"

    @property
    def cache(self) -> Path:
        """What can be computed again: decoded images, activations, states of unfinished runs."""
        return self.data / "cache"

    @property
    def results(self) -> Path:
        """One folder per finished run."""
        return self.data / "results"

    @property
    def figures(self) -> Path:
        """Figures as PNG."""
        return self.root / "figures"

    @property
    def notebooks(self) -> Path:
        """The numbered notebooks."""
        return self.root / "notebooks"

    @property
    def report(self) -> Path:
        """The executed notebooks and the PDF and HTML bound from them."""
        return self.root / "report"


PATHS = Paths(Path(os.environ.get("FRUITVEG_HOME", CHECKOUT)))

SPLITS = ("train", "val", "test")
STAGES = PROBE, FINETUNED, SCRATCH = "linear probe", "fine-tuned", "scratch"

ABLATIONS = (
    "resplit",
    "train_images_per_class",
    "probe_first",
    "update_batch_norm",
    "divide_by_255",
)
RECIPE_OPTIONS = ("crop", "soup", "logit_adjustment")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run's result depends on, apart from the images and the weights.

    Attributes:
        dataset: a name from `datasets.DATASETS` or a folder.
        label_level: "coarse" or "fine"; only `grocery` has both.
        backbone: key of `backbones.BACKBONES`.
        strategy: "transfer" (linear probe, then fine-tuning) or "scratch" (random
            initialisation, all layers trained: the baseline).
        weights: "auto", "bundled", "random" or a file, see `weights.resolve`.
        size: side of the images in pixels.
        crop: fraction of each side that is kept around the centre; 0.875 is what ImageNet networks are
            usually tested with.
        views: number of cached augmented views of each training image.
        seed: decides the head's initialisation, the order of the images and the views drawn.
        batch_size: images per step, in every phase.
        probe_epochs, finetune_epochs: the most epochs of either phase.
        probe_rate, finetune_rate, scratch_rate: the highest learning rate of each phase; a
            `finetune_rate` of None stands for the backbone's own.
        mixup: alpha of mixup in fine-tuning and from scratch, see `training.Batches`.
        patience: epochs without a lower validation loss before a phase stops.
        weight_decay: of AdamW (Loshchilov & Hutter 2019).
        soup: fine-tune so many times from the one linear probe, each time in another order and to
            the last epoch, and average the weights (uniform model soup, Wortsman et al. 2022); 1
            moves them back to the probe instead, see `training.interpolate`.
        logit_adjustment: of the classes in the loss of both phases, by which the best epoch is chosen too;
            0 for none, see `training.logit_adjusted_crossentropy`.
        resplit: split the images anew, duplicates together, see `audit.resplit`.
        train_images_per_class: train on so many images of each class, chosen by the seed; None for all.
        probe_first: False leaves the linear probe out: fine-tuning starts from a random head.
        update_batch_norm: True trains BatchNorm behind the boundary like any layer, and lets its
            statistics follow the batches: a common mistake with few images.
        divide_by_255: True replaces the backbone's own preprocessing: another one.
    """

    dataset: str
    backbone: str
    label_level: str = "coarse"
    strategy: str = "transfer"
    weights: str = "auto"
    size: int = 224
    crop: float = 1.0
    views: int = 8
    seed: int = 0
    batch_size: int = 32
    probe_epochs: int = 60
    finetune_epochs: int = 30
    probe_rate: float = 1e-3
    finetune_rate: float | None = None
    scratch_rate: float = 1e-3
    mixup: float = 0.4
    patience: int = 12
    weight_decay: float = 1e-2
    soup: int = 1
    logit_adjustment: float = 0.0
    resplit: bool = False
    train_images_per_class: int | None = None
    probe_first: bool = True
    update_batch_norm: bool = False
    divide_by_255: bool = False

    def to_dict(self) -> dict:
        """Return the settings as plain values for JSON, of ablations and extras those in use."""
        # Runs finished before one of them was thought of keep their identity.
        usual = {field.name: field.default for field in fields(self)}
        return {
            k: v
            for k, v in asdict(self).items()
            if k not in ABLATIONS + RECIPE_OPTIONS or v != usual[k]
        }


# The synthetic set is for seeing everything work, anywhere: small images, few epochs.
PROFILES = {"synthetic": {"size": 64, "views": 1, "probe_epochs": 30, "finetune_epochs": 3}}
