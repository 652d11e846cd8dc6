"""A trained network that classifies images in a program: loaded once, thread-safe."""

import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fruitveg_tl.config import variable
from fruitveg_tl.data.images import decode
from fruitveg_tl.data.preprocess import to_pixels
from fruitveg_tl.models.compiled import BATCH, CONFIDENCE, FILE, Compiled
from fruitveg_tl.utils.errors import InputError, first_line, printable
from fruitveg_tl.utils.storage import HASHES, is_recorded

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Answer:
    """The classification of one image.

    Attributes:
        label: the most probable class; None if the network is not sure, or there is a problem.
        probability: of the most probable class, 0 to 1.
        top: the most probable classes and their probabilities, highest first.
        problem: what is wrong with the image; None if nothing is.
    """

    label: str | None = None
    probability: float = 0.0
    top: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


class Classifier:
    """A network with its classes and its preprocessing; any number of threads may call it.

        classify = Classifier.load("data/runs/RUN")
        classify("apple.jpg").label

    Attributes:
        classes: all labels, in the order of the network's output.
        min_confidence: the lowest probability, 0 to 1, of an answer that is sure.
        coverage: fraction of the validation images whose answers are sure; None if unknown.
    """

    def __init__(self, folder: Path, min_confidence: float | None = None):
        self.classes = json.loads((folder / "classes.json").read_text())
        about = folder / "input.json"  # of an exported folder
        if not about.exists():
            about = folder / "config.json"
        settings = json.loads(about.read_text())
        self.size, self.crop = settings["size"], settings["crop"]
        file = folder / CONFIDENCE
        sure = json.loads(file.read_text()) if file.exists() else {}
        known = sure.get("min_confidence", 0.0) if min_confidence is None else min_confidence
        self.min_confidence = known
        self.coverage = sure.get("coverage") if min_confidence is None else None
        self._outputs = _network(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike, min_confidence: float | None = None) -> "Classifier":
        """Load the network of a run or of an exported folder; InputError if missing or changed.

        An answer is "not sure" below the probability `min_confidence`. By default, that is the
        lowest one with a precision of 95 % on the validation images, which the run stores.
        """
        try:
            return cls(Path(folder), min_confidence)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{printable(Path(folder))}: neither a run nor an exported network: "
                f"{Path(error.filename or '').name} is missing"
            ) from None
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{printable(Path(folder))}: damaged ({first_line(error)}); train or export again"
            ) from None

    def __call__(self, images: Picture | Sequence[Picture], k: int = 5) -> Answer | list[Answer]:
        """Classify an image or a list: path, file content, PIL image or uint8 (height, width, 3).

        `k` is the number of classes in `Answer.top`. Raises TypeError for other types.
        """
        if isinstance(images, list | tuple):
            return list(self.answers(images, k))
        (answer,) = self.answers([images], k)  # to its end: the network keeps its requests
        return answer

    def answers(self, images: Sequence[Picture], k: int = 5) -> Iterator[Answer]:
        """Yield the answer to each image, in order; decode while the network computes."""
        problems: list[str | None] = []

        def batches() -> Iterator[np.ndarray]:
            for start in range(0, len(images), BATCH):
                pixels = []
                for image in images[start : start + BATCH]:
                    try:
                        pixels.append(self._pixels(image))
                        problems.append(None)
                    except InputError as error:
                        problems.append(str(error))
                if pixels:
                    yield np.stack(pixels)

        number = 0
        for batch in self._outputs(batches()):
            for row in batch:
                while problems[number]:
                    yield Answer(problem=problems[number])
                    number += 1
                yield self._answer(row, k)
                number += 1
        yield from (Answer(problem=problem) for problem in problems[number:])

    def _answer(self, probabilities: np.ndarray, k: int) -> Answer:
        order = np.argsort(-probabilities, kind="stable")[:k]
        top = {self.classes[i]: float(probabilities[i]) for i in order}
        label, probability = next(iter(top.items()))
        return Answer(label if probability >= self.min_confidence else None, probability, top)

    def _pixels(self, image: Picture) -> np.ndarray:
        if isinstance(image, bytes):
            return decode(image, self.size, self.crop)
        if isinstance(image, str | os.PathLike):
            return decode(Path(image), self.size, self.crop)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise InputError(
                    f"an array of {image.dtype} and shape {image.shape}: give RGB as uint8, "
                    "(height, width, 3)"
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise TypeError(f"{type(image).__name__}: give a path, bytes, a PIL image or an array")
        try:
            return to_pixels(image.copy(), self.size, self.crop)
        except (OSError, ValueError) as error:
            raise InputError(f"the image: {first_line(error)}; give another one") from None


def _network(folder: Path) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """Load the network in a folder, by OpenVINO if possible: Keras takes seconds to import."""
    able = importlib.util.find_spec("openvino") and variable("ENGINE") != "keras"
    is_run = (folder / "runs.csv").exists()
    if (file := folder / FILE).exists() and able:
        for part in (file, file.with_suffix(".bin")):
            if is_run and not is_recorded(part):
                raise InputError(
                    f"{printable(part)}: not the file whose hash {HASHES} records; delete it to "
                    "use model.keras instead"
                )
        return Compiled(file).outputs
    if is_run:
        from fruitveg_tl.studies import read_study
        from fruitveg_tl.training.inference import Inference

        (run,) = read_study(folder)
        return Inference(run.load_model()).outputs
    from fruitveg_tl.export import reader

    answer, lock = reader(folder), threading.Lock()

    def outputs(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            with lock:
                yield answer(batch.astype(np.float32))

    return outputs
