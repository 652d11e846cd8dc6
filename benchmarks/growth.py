"""How time and memory grow with the images and with the classes.

The generated images of `synthetic` are handed out again and again to as many classes and files as
asked for; every size is trained in a process of its own. Memory is what the process holds for
itself at its highest (RssAnon), looked at every 50 ms: pages of the mapped arrays belong to the
page cache, which the system takes back when it needs to.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

PHOTOGRAPHS, CLASSES = 600, 10
SIZES = [(factor * PHOTOGRAPHS, CLASSES) for factor in (1, 2, 4, 8)]
SIZES += [(4 * PHOTOGRAPHS, classes) for classes in (34, 100, 300)]  # 8 of each at least
EPOCHS = 3


def one(root: str) -> dict[str, float]:
    """Train on a folder of images; return seconds and GiB."""
    import keras  # noqa: F401 (in memory before the measurement begins)

    from fruitveg_tl import results
    from fruitveg_tl.config import RunConfig
    from fruitveg_tl.run import train_and_evaluate

    config = RunConfig(
        root, "mobilenetv2", size=96, views=1, probe_epochs=EPOCHS, finetune_epochs=EPOCHS
    )
    highest, stop = [_private_memory()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            highest.append(_private_memory())

    threading.Thread(target=watch, daemon=True).start()
    seconds = results.load(train_and_evaluate(config)).provenance["seconds"]
    stop.set()
    return seconds | {"GiB before": highest[0], "GiB": max(highest)}


def _private_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


def _images(count: int, classes: int) -> Iterator[tuple[str, str, Path]]:
    """Give three quarters of the images to train on, an eighth to each other split."""
    from fruitveg_tl.data import registry

    synthetic = registry.load("synthetic")
    files = cycle(synthetic.root / path for path in synthetic.index["path"])
    splits = ["train"] * 6 + ["validation", "test"]
    for number in range(count):
        split = splits[number // classes % len(splits)]
        yield split, f"class {number % classes:03d}", next(files)


def main() -> None:
    """Measure all sizes in turn and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*json.loads(options.one))))
        return
    from record import in_own_process, link_images, save

    rows = []
    for images, classes in SIZES:
        with tempfile.TemporaryDirectory() as root:
            link_images(Path(root), _images(images, classes))
            start = time.perf_counter()
            found = in_own_process(__file__, [root])
            whole = time.perf_counter() - start
        rows.append(
            {
                "Images": images,
                "Classes": classes,
                "Decode (s)": f"{found['decode']:.1f}",
                "Frozen part (s)": f"{found['frozen']:.1f}",
                "Linear probe (s an epoch)": f"{found['linear probe'] / EPOCHS:.2f}",
                "Fine-tuning (s an epoch)": f"{found['fine-tuned'] / EPOCHS:.1f}",
                "Whole process (s)": f"{whole:.0f}",
                "Peak memory (GiB)": f"{found['GiB']:.2f}",
                "before it began": f"{found['GiB before']:.2f}",
            }
        )
        print(rows[-1], flush=True)
    save(Path(__file__).stem, rows)


if __name__ == "__main__":
    main()
