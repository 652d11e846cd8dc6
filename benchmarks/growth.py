"""How time and memory grow with the images and with the classes.

The generated images of `synthetic` are handed out again and again to as many classes and files as
asked for; every size is trained in a process of its own. Beside them, one run from scratch at 224
pixels, whose training step holds the whole network's activations.
"""

import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from harness import link_images, measure, save, start, train

IMAGES, CLASSES, EPOCHS = 600, 10, 3
SIZES = [(factor * IMAGES, CLASSES) for factor in (1, 2, 4, 8)]
SIZES += [(4 * IMAGES, classes) for classes in (34, 100, 300)]  # 8 of each at least
SCRATCH = {"strategy": "scratch", "size": 224, "views": 0, "finetune_epochs": 1}


def seconds(root: str, settings: dict) -> dict[str, float]:
    """Train on a folder of images; return the seconds of every step."""
    return train(root, "mobilenetv2", **settings).seconds


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
    """Measure all sizes in turn and store both tables."""
    transfer = {"size": 96, "views": 1, "probe_epochs": EPOCHS, "finetune_epochs": EPOCHS}
    rows = []
    for images, classes in SIZES:
        found = _measured(images, classes, transfer)
        seconds = found["found"]
        rows.append(
            {
                "Images": images,
                "Classes": classes,
                "Frozen part (s)": f"{seconds['frozen']:.1f}",
                "Linear probe (s an epoch)": f"{seconds['linear probe'] / EPOCHS:.2f}",
                "Fine-tuning (s an epoch)": f"{seconds['fine-tuned'] / EPOCHS:.1f}",
                "Whole process (s)": f"{found['seconds']:.0f}",
                "Peak GiB": f"{found['GiB']:.2f}",
            }
        )
        print(rows[-1], flush=True)
    save(Path(__file__).stem, rows)
    found = _measured(2100, CLASSES, SCRATCH)
    row = {"From scratch": "MobileNetV2, 2,100 images of 224 px, 1 epoch"}
    row |= {"Whole process (s)": f"{found['seconds']:.0f}", "Peak GiB": f"{found['GiB']:.2f}"}
    save("scratch_memory", [row])


def _measured(images: int, classes: int, settings: dict) -> dict:
    with tempfile.TemporaryDirectory() as root:
        link_images(Path(root), _images(images, classes))
        return measure(seconds, root, settings)


if __name__ == "__main__":
    start(main, seconds)
