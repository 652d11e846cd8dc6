"""Miniature datasets and a project folder of its own for every test: no network, no `shared`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from fruitveg_tl import config, study
from fruitveg_tl.config import RunConfig

# A busy machine is no defect: no test fails on a time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

CLASSES = ("apple", "banana", "cherry")
COUNTS = {"train": 8, "validation": 3, "test": 4}
PROJECT = Path(__file__).resolve().parents[1]


def save_photograph(path: Path, colour: int, seed: int, size=(48, 40)) -> Path:
    """Write a noisy JPEG whose strongest channel is `colour`."""
    rng = np.random.default_rng([colour, seed])
    pixels = rng.integers(0, 120, (size[1], size[0], 3))
    pixels[..., colour % 3] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_photographs(root: Path) -> Path:
    """Write a dataset of three classes in train/validation/test folders."""
    for split, count in COUNTS.items():
        for colour, name in enumerate(CLASSES):
            for i in range(count):
                seed = i + 100 * len(split)
                save_photograph(root / split / name / f"{i}.jpg", colour, seed)
    return root


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A dataset of three classes in train/validation/test folders."""
    return write_photographs(tmp_path / "photographs")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every folder the package writes to at a temporary one."""
    for name in ("DATA_DIR", "CACHE_DIR", "RESULTS_DIR"):
        folder = tmp_path / "home" / getattr(config, name).relative_to(config.ROOT)
        for module in list(sys.modules.values()):
            if module.__name__.startswith("fruitveg_tl") and hasattr(module, name):
                monkeypatch.setattr(module, name, folder)
    for name in ("FRUITVEG_DATA", "FRUITVEG_WEIGHTS", "FRUITVEG_DATASET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "home"


@pytest.fixture
def quick(photographs: Path) -> RunConfig:
    """A run that takes seconds."""
    return RunConfig(
        str(photographs),
        "vgg16",  # the smallest graph, hence the quickest to build
        weights="random",
        size=32,
        views=1,
        batch_size=8,
        probe_epochs=3,
        finetune_epochs=2,
    )


@pytest.fixture
def finished(home: Path, quick: RunConfig) -> Path:
    """The folder of one finished run."""
    return study.run(quick)


def command(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m fruitveg_tl` in a process of its own, writing below `home`."""
    return subprocess.run(
        [sys.executable, "-m", "fruitveg_tl", *arguments],
        env=process_environment(home, **environment),
        capture_output=True,
        text=True,
        check=False,
    )


def process_environment(home: Path, **environment: str) -> dict[str, str]:
    """Return the environment for a process that writes below `home` only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FRUITVEG")}
    return kept | {"FRUITVEG_HOME": str(home), "KERAS_HOME": str(home / "keras")} | environment
