"""From one set of images to another: predictions on the classes that both have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fruitveg_tl.config import FINETUNED, PROBE
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.data.kaggle import FRUITS_VEGES_TO_GROCERY
from fruitveg_tl.evaluation import calibration, metrics
from fruitveg_tl.studies import Run
from fruitveg_tl.training.inference import Inference
from fruitveg_tl.utils.errors import InputError

LabelMap = Mapping[str, str]
# Of scikit-learn's logistic regression: there are many more features than images of a class.
INVERSE_PENALTY = 0.01


@dataclass(frozen=True)
class Trained:
    """A network trained on a set of images.

    Attributes:
        name: of the set, without the fold.
        run: a finished run whose network is on disk.
        dataset: the images, split as the run splits them.
        features: of all its images, see `run.pooled_features`.
    """

    name: str
    run: Run
    dataset: Images
    features: np.ndarray


@dataclass(frozen=True)
class Crossing:
    """What a network, in one stage, says of the test images of one set.

    Attributes:
        trained_on, tested_on: names of the sets.
        stage: `PROBE`, the frozen network, or `FINETUNED`.
        targets: true class indices among the shared classes, shape (n,).
        probabilities: shape (n, shared).
    """

    trained_on: str
    tested_on: str
    stage: str
    targets: np.ndarray
    probabilities: np.ndarray


def shared_classes(
    one: Iterable[str], other: Iterable[str], names: LabelMap = FRUITS_VEGES_TO_GROCERY
) -> list[str]:
    """Return the classes that two sets share, sorted.

    Args:
        one: the classes of a set.
        other: those of another.
        names: classes of one set to those of the other; several may go to one. A class that is not
            among them stands for itself.
    """
    return sorted(
        {names.get(name, name) for name in one} & {names.get(name, name) for name in other}
    )


def on_shared_classes(
    probabilities: np.ndarray,
    known: Sequence[str],
    shared: Sequence[str],
    names: LabelMap = FRUITS_VEGES_TO_GROCERY,
) -> np.ndarray:
    """Let a network choose among the shared classes alone.

    What it says of other classes is left out, and the rest scaled to sum to 1: it knows that none
    of those is shown, whichever set it was trained on.

    Args:
        probabilities: shape (n, known).
        known: the classes that it was trained on.
        shared: from `shared_classes`.
        names: see `shared_classes`.

    Returns:
        probabilities (n, shared).
    """
    columns = np.array([names.get(name, name) for name in known])
    summed = np.stack([probabilities[:, columns == name].sum(1) for name in shared], axis=1)
    # Never 0: a network sure of some other fruit still has to choose among these.
    summed = np.maximum(summed, np.finfo(np.float32).tiny)
    return summed / summed.sum(1, keepdims=True)


def both_ways(
    one: Trained, other: Trained, names: LabelMap = FRUITS_VEGES_TO_GROCERY
) -> Iterator[Crossing]:
    """Test two networks on the test images of both their sets, on the classes that those share.

    A run does not keep its linear probe: a logistic regression on the same frozen features stands
    for it.

    Args:
        one: a network.
        other: the same architecture from the same weights, trained on another set.
        names: see `shared_classes`.

    Raises:
        InputError: if the sets share fewer than two classes.
    """
    shared = shared_classes(one.dataset.classes, other.dataset.classes, names)
    if len(shared) < 2:
        raise InputError(f"{one.name} and {other.name} share {len(shared)} classes; two are needed")
    for trained in (one, other):
        probe = _probe(trained)
        for tested in (one, other):
            test = tested.dataset.rows("test")
            labels = tested.dataset.index["label"].to_numpy(str)[test]
            truth = np.array([names.get(label, label) for label in labels])
            common = np.isin(truth, shared)
            for stage, probabilities in (
                (PROBE, probe.predict_proba(tested.features[test[common]])),
                (FINETUNED, _fine_tuned(trained, tested, common)),
            ):
                among = on_shared_classes(probabilities, trained.dataset.classes, shared, names)
                targets = np.searchsorted(shared, truth[common])
                yield Crossing(trained.name, tested.name, stage, targets, among)


def _fine_tuned(trained: Trained, tested: Trained, among: np.ndarray) -> np.ndarray:
    """Return the network's probabilities for some of the test images of a set."""
    if trained is tested:
        return trained.run.probabilities[FINETUNED][among]
    config, rows = trained.run.config, tested.dataset.rows("test")[among]
    network = Inference(trained.run.load_model())
    return network.predict(tested.dataset.pixels(config.size, config.crop)[rows])


def _probe(trained: Trained):
    rows = trained.dataset.rows("train")
    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
    model = make_pipeline(StandardScaler(), regression)
    return model.fit(trained.features[rows], trained.dataset.targets[rows])


def scores(crossings: Iterable[Crossing]) -> pd.DataFrame:
    """Return one row per pair of sets, averaged over crossings of several seeds.

    Returns:
        trained on, tested on, images (of all seeds), accuracy of both stages, and their expected
        calibration error.
    """
    rows = [
        {
            "trained on": crossing.trained_on,
            "tested on": crossing.tested_on,
            "stage": crossing.stage,
            "images": len(crossing.targets),
            "accuracy": metrics.accuracy(crossing.targets, crossing.probabilities.argmax(1)),
            "ECE": calibration.expected_calibration_error(crossing.targets, crossing.probabilities),
        }
        for crossing in crossings
    ]
    sides = ["trained on", "tested on"]
    by_stage = pd.DataFrame(rows).groupby([*sides, "stage"], sort=False)
    averaged = by_stage.agg({"images": "sum", "accuracy": "mean", "ECE": "mean"}).unstack("stage")
    found = pd.DataFrame({"images": averaged["images", PROBE]})
    for score in ("accuracy", "ECE"):
        for stage in (PROBE, FINETUNED):
            found[f"{score}, {stage}"] = averaged[score, stage]
    return found.reset_index()
