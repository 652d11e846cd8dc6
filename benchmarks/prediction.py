"""One image, and a thousand: how fast `Classifier` is beside plain Keras, and how much memory.

Both get the same arrays of 224 pixels, in float32, and 1,000 files, with decoding. Eight threads
ask for one image at a time.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from harness import DATASET, link_images, measure, save, span, start, train

SIZE, IMAGES, ROUNDS, BATCH = 224, 1000, 40, 32


def shortest(root: str, backbone: str) -> str:
    """Train as short as can be; return the run's folder."""
    settings = {"size": SIZE, "views": 0, "probe_epochs": 1, "finetune_epochs": 1}
    return str(train(root, backbone, **settings).folder)


def network(run: str, by: str):
    """Load a run's network; return functions from a list of arrays and of files to answers."""
    if by == "Classifier":
        from fruitveg_tl import Classifier

        classify = Classifier.load(run)
        return classify, classify
    import json
    import sys

    import keras

    sys.path.insert(0, run)
    import numpy as np
    from preprocess import load_image

    settings = json.loads(Path(run, "config.json").read_text())
    model = keras.saving.load_model(Path(run, "model.keras"))

    def from_files(files):
        for begin in range(0, len(files), BATCH):
            part = files[begin : begin + BATCH]
            pixels = [load_image(file, settings["size"], settings["crop"]) for file in part]
            model.predict_on_batch(np.stack(pixels))

    return lambda images: model.predict_on_batch(np.stack(images)), from_files


def serve(run: str, by: str) -> dict:
    """Return the seconds to import and load, and of each of some images, batches and threads."""
    import numpy as np

    begin = time.perf_counter()
    answer, _ = network(run, by)
    loaded = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8))
    found = {"load": loaded, "one": [], "batch": [], "threads": []}
    for name, some, rounds in (("one", images[:1], ROUNDS), ("batch", images, ROUNDS // 8)):
        for number in range(rounds + 2):  # the first ones trace the graph and warm caches
            begin = time.perf_counter()
            answer(some)
            if number > 1:
                found[name].append(time.perf_counter() - begin)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(ROUNDS // 8):
            begin = time.perf_counter()
            list(pool.map(lambda image: answer([image]), images))
            found["threads"].append(time.perf_counter() - begin)
    return found


def classify(root: str, run: str, by: str) -> float:
    """Return the seconds that all images of a folder take."""
    _, from_files = network(run, by)
    begin = time.perf_counter()
    from_files(sorted(Path(root).glob("*.jpg")))
    return time.perf_counter() - begin


def main() -> None:
    """Measure every backbone both ways and store the table."""
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
        os.environ.pop("FRUITVEG_ENGINE", None)
        for backbone in BACKBONES:
            run = measure(shortest, str(few), backbone, home=str(home))["found"]
            for by in ("plain Keras", "Classifier"):
                found = measure(serve, run, by, home=str(home))["found"]
                files = measure(classify, str(many), run, by, home=str(home))
                milliseconds = [1000 * seconds for seconds in found["one"]]
                rows.append(
                    {
                        "Backbone": backbone,
                        "By": by,
                        "Import and load (s)": f"{found['load']:.1f}",
                        "One image (ms)": f"{median(milliseconds):.1f}",
                        "Lowest to highest": span(milliseconds, ".1f"),
                        "Batches of 32 (images/s)": f"{BATCH / median(found['batch']):.1f}",
                        "Eight threads (images/s)": f"{BATCH / median(found['threads']):.1f}",
                        "1,000 files (images/s)": f"{IMAGES / files['found']:.1f}",
                        "Peak GiB": f"{files['GiB']:.2f}",
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
    start(main, shortest, serve, classify)
