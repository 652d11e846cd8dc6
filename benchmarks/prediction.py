"""One image, and a thousand: how long a trained network takes, and how much memory.

Latency is that of one image in a batch of its own, decoding aside. Throughput is that of `predict`
on image files of 224 pixels, decoding included, with the memory that its process takes at its most.
Both by OpenVINO and by Keras, as before there was OpenVINO.
"""

import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from harness import DATASET, link_images, measure, save, span, start, train

SIZE, IMAGES, ROUNDS = 224, 1000, 40


def shortest(root: str, backbone: str) -> str:
    """Train as short as can be; return the run's folder."""
    settings = {"size": SIZE, "views": 0, "probe_epochs": 1, "finetune_epochs": 1}
    return str(train(root, backbone, **settings).folder)


def latency(run: str) -> list[float]:
    """Return the milliseconds that each of some images takes, one at a time."""
    import numpy as np

    from fruitveg_tl.predict import choose_run
    from fruitveg_tl.training.inference import Inference

    network = Inference(choose_run(run).load_model())
    image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
    milliseconds = []
    for _ in range(ROUNDS + 5):
        begin = time.perf_counter()
        network.predict(image)
        milliseconds.append(1000 * (time.perf_counter() - begin))
    return milliseconds[5:]  # the first ones trace the graph and warm caches


def classify(root: str, run: str) -> float:
    """Return the seconds that `predict` takes for all images of a folder."""
    from fruitveg_tl.predict import choose_run, predict

    begin = time.perf_counter()
    count = sum(1 for _ in predict(sorted(Path(root).glob("*.jpg")), choose_run(run)))
    assert count == IMAGES
    return time.perf_counter() - begin


def main() -> None:
    """Measure every backbone by both engines and store the table."""
    from fruitveg_tl.data import registry
    from fruitveg_tl.models.backbones import BACKBONES

    dataset = registry.load(DATASET)
    files = [dataset.root / path for path in dataset.index["path"]]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        few, many, home = (Path(temporary, name) for name in ("few", "many", "home"))
        some = dataset.index.groupby(["split", "label"]).head(1)
        everywhere = some.groupby("label")["split"].transform("nunique") == 3
        link_images(
            few,
            (
                ({"val": "validation"}.get(x.split, x.split), x.label, dataset.root / x.path)
                for x in some[everywhere].itertuples()
            ),
        )
        _small_copies(many, islice(cycle(files), IMAGES))
        for backbone in BACKBONES:
            run = measure(shortest, str(few), backbone, home=str(home))["found"]
            for engine in ("keras", "openvino"):
                setting = {"home": str(home), "FRUITVEG_ENGINE": engine}
                one = measure(latency, run, **setting)["found"]
                all_of_them = measure(classify, str(many), run, **setting)
                rows.append(
                    {
                        "Backbone": backbone,
                        "Engine": engine,
                        "One image (ms)": f"{median(one):.1f}",
                        "Lowest to highest": span(one, ".1f"),
                        "predict, images a second": f"{IMAGES / all_of_them['found']:.1f}",
                        f"Peak GiB on {IMAGES:,} images": f"{all_of_them['GiB']:.2f}",
                    }
                )
                print(rows[-1], flush=True)
    save(Path(__file__).stem, rows)


def _small_copies(folder: Path, files) -> None:
    """Write each image as a JPEG of 224 pixels."""
    from PIL import Image, ImageOps

    folder.mkdir()
    for number, file in enumerate(files):
        with Image.open(file) as image:
            small = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE))
        small.save(folder / f"{number:04d}.jpg", quality=90)


if __name__ == "__main__":
    start(main, shortest, latency, classify)
