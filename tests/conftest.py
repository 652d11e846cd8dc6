"""Miniature datasets and a project folder of its own for every test: no network, no `shared`."""

import encodings.cp437  # noqa: F401 (zipfile's; an unprivileged process may not read root's Python)
import json
import multiprocessing.sharedctypes  # noqa: F401 (Keras' data sets'; the same)
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import settings
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from fruitveg_tl import studies
from fruitveg_tl.config import PATHS, RunConfig
from fruitveg_tl.data import registry
from fruitveg_tl.models import weights
from fruitveg_tl.models.backbones import backbone_by_name
from fruitveg_tl.run import train

# Converting a network takes longer than the few images of a test; test_inference tries both.
os.environ["FRUITVEG_ENGINE"] = "keras"
# A busy machine is no defect: no test fails on a time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

CLASSES = ("apple", "banana", "cherry")
COUNTS = {"train": 8, "validation": 3, "test": 4}
# Options of `run` for runs of a few seconds.
QUICK = "--weights random --size 32 --views 1 --probe-epochs 2 --finetune-epochs 3".split()  # noqa: SIM905
PROJECT = Path(__file__).resolve().parents[1]


def save_image(path: Path, colour: int, seed: int, size=(48, 40)) -> Path:
    """Write a noisy JPEG whose strongest channel is `colour`."""
    rng = np.random.default_rng([colour, seed])
    pixels = rng.integers(0, 120, (size[1], size[0], 3))
    pixels[..., colour % 3] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def scene(seed: int) -> Image.Image:
    """An image with large shapes, as perceptual hashes expect."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def write_scenes(root: Path, images: Mapping[str, Image.Image]) -> str:
    """Write images under their names below `root`, and return it."""
    for name, image in images.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return str(root)


def write_images(
    root: Path,
    classes: Sequence[str] = CLASSES,
    counts: Sequence[int] = tuple(COUNTS.values()),
    ending: str = ".jpg",
) -> Path:
    """Write a dataset in train/validation/test folders."""
    for split, count in zip(COUNTS, counts, strict=True):
        for colour, name in enumerate(classes):
            for i in range(count):
                seed = i + 100 * len(split)
                save_image(root / split / name / f"{i}{ending}", colour, seed)
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A dataset of three classes in train/validation/test folders."""
    return write_images(tmp_path / "images")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every folder the package writes to at a temporary one."""
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path / "home"))
    for name in ("FRUITVEG_DATA", "FRUITVEG_WEIGHTS", "FRUITVEG_DATASET", "FRUITVEG_OTHER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(PATHS, "weights", tmp_path / "bundled")
    return tmp_path / "home"


@pytest.fixture
def eager() -> Iterator[None]:
    """No graph is traced, which takes longer than the few steps of a test."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@dataclass(frozen=True)
class Quick:
    """A run that takes seconds, and how to change it."""

    images: str
    config: RunConfig
    weights: str = "random"

    def train(self, images=None, fold=0, labels=None, weights=None, **changes) -> studies.Run:
        """Train on these images, or with others, other settings or options of `run.train`."""
        force = changes.pop("force", False)
        config = replace(self.config, **changes)
        loaded = registry.load(str(images or self.images), fold=fold)
        if labels:
            loaded = loaded.subsample(labels, config.seed)
        return train(loaded, source_of(config, weights or self.weights), config, force)


def source_of(config: RunConfig, choice: str = "random") -> weights.SourceWeights:
    """Return the source weights of a run."""
    return weights.resolve(backbone_by_name(config.backbone), choice, config.seed)


def load_run(folder: Path) -> studies.Run:
    """Read the one run of a folder."""
    return next(iter(studies.read_study(Path(folder))))


@pytest.fixture
def quick(images: Path, eager: None) -> Quick:
    """A run that takes seconds."""
    config = RunConfig(
        "vgg16",  # the smallest graph, hence the quickest to build
        size=32,
        views=1,
        batch_size=8,
        probe_epochs=3,
        finetune_epochs=2,
    )
    return Quick(str(images), config)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a finished run leaves a copy for the others."""
    return tmp_path_factory.mktemp("finished") / "data"


@pytest.fixture
def finished(home: Path, quick: Quick, finished_once: Path) -> Path:
    """The folder of one finished run, and the caches that it leaves behind."""
    before = finished_once.with_suffix(".txt")
    if not finished_once.exists():
        quick.train()
        shutil.copytree(home / "data", finished_once)
        before.write_text(quick.images)
    shutil.copytree(finished_once, home / "data", dirs_exist_ok=True)
    (file,) = (home / "data" / "runs").glob("*/runs.csv")
    file.write_text(file.read_text().replace(before.read_text(), quick.images))
    return file.parent


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Chromium, if there is one."""
    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if not chromium:
        pytest.skip("no Chromium here; «apt-get install chromium», or set CHROMIUM_PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def assert_fits_screens(browser: Browser, page: Path) -> list[Page]:
    """A page is as wide as a desk's screen and a telephone's, and shows all its images."""
    views = []
    for width in (1280, 400):
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.on("dialog", lambda dialog: pytest.fail("a name has run as code"))
        view.goto(page.as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter(image => !image.naturalWidth).length"
        assert view.evaluate(broken) == 0
        if folder := os.environ.get("SCREENSHOTS"):
            view.screenshot(path=Path(folder) / f"{page.stem}-{width}.png")
        views.append(view)
    return views


@pytest.fixture
def open_folder():
    """A folder that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def problems(err: str) -> list[str]:
    """Return what a command says on standard error beside warnings and progress."""
    usual = re.compile(
        "WARNING: |.*: [0-9,]+ of [0-9,]+ [a-z]+, |.*: its cache needs |.*: training and the "
    )
    return [line for line in err.splitlines() if not usual.match(line)]


@contextmanager
def unprivileged():
    """Give up root inside the block: permissions do not bind root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


AS_COMMITTED = '"grocery", 0, None, None, 0'  # the parameters of every notebook


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A project folder with the notebooks, and an environment that makes them small."""
    folder = tmp_path_factory.mktemp("miniature")
    home = folder / "home"
    shutil.copytree(PROJECT / "notebooks", home / "notebooks")
    own = write_images(folder / "images")
    shop = write_images(folder / "shop", ("Apple", "Banana", "Leek"))
    environment = {"FRUITVEG_OTHER": str(shop)}
    for file in (home / "notebooks").glob("[0-9A]*.ipynb"):
        committed, changed = (
            json.dumps(values)[1:-1] for values in (AS_COMMITTED, f'"{own}", 0, 32, 1, 0')
        )
        assert file.read_text().count(committed) == 1
        file.write_text(file.read_text().replace(committed, changed))
    # Kernels run this when they start: tracing a graph takes longer than these few steps.
    startup = folder / "ipython" / "profile_default" / "startup" / "eager.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(
        "import tensorflow, warnings\n"
        "from fruitveg_tl.config import PROFILES\n"
        f"PROFILES[{str(own)!r}] = {{'views': 1, 'probe_epochs': 2}}\n"
        "tensorflow.config.run_functions_eagerly(True)\n"
        "warnings.filterwarnings('ignore', message='Even though the')\n"
    )
    environment["IPYTHONDIR"] = str(folder / "ipython")
    closed = "http://127.0.0.1:9"  # where there is a network, no weights are downloaded
    return home, environment | {
        "https_proxy": closed,
        "http_proxy": closed,
        "no_proxy": "127.0.0.1",
    }


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
    own = {"FRUITVEG_HOME": str(home), "KERAS_HOME": str(home / "keras")}
    return kept | own | {"FRUITVEG_ENGINE": "keras"} | environment


# Files that take longest, most of their time in other processes.
SLOW = (
    "test_course.py",
    "test_run.py",
    "test_notebooks.py",
    "test_faults.py",
    "test_kills.py",
    "test_notebook_faults.py",
    "test_grid.py",
)


def pytest_collection_modifyitems(items):
    """Start the slowest files first, so that none of them is left to one worker at the end."""
    rank = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW)))


# --- the tally of what was tried: tests marked «reliability» ------------------------------------


def pytest_addoption(parser):
    """Add the option that writes the tally into the README."""
    parser.addoption("--readme", action="store_true", help="write the table of tests/README.md")


def pytest_configure(config):
    """Announce the mark."""
    config.addinivalue_line("markers", "reliability(what): counted in the table of tests/README.md")


@pytest.fixture(autouse=True)
def _counted(request, record_property):
    if mark := request.node.get_closest_marker("reliability"):
        record_property("reliability", mark.args[0])


@pytest.fixture
def tried(record_property):
    """Say how many inputs or faults one test has tried, where it is not one."""
    return lambda count: record_property("tried", count)


def pytest_terminal_summary(terminalreporter, config):
    """Print the tally, and write it to the README if asked."""
    counts = {"passed": Counter(), "failed": Counter()}
    for outcome, counter in counts.items():
        for report in terminalreporter.stats.get(outcome, []):
            facts = dict(report.user_properties)
            if "reliability" in facts:
                counter[facts["reliability"]] += facts.get("tried", 1)
    lines = ["| what | tried | survived | lost |", "| --- | --- | --- | --- |"]
    for what in sorted(counts["passed"] | counts["failed"]):
        good, bad = counts["passed"][what], counts["failed"][what]
        lines.append(f"| {what} | {good + bad} | {good} | {bad} |")
    if len(lines) > 2:
        terminalreporter.write_line("\n".join(["", *lines]))
    if config.getoption("--readme"):
        readme = PROJECT / "tests" / "README.md"
        block = re.compile(r"(?<=<!-- reliability -->\n).*?(?=<!-- /reliability -->)", re.DOTALL)
        readme.write_text(block.sub("\n".join([*lines, ""]), readme.read_text()))
