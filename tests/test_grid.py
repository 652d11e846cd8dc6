"""Runs side by side through Ray: the results of one after the other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK, command, process_environment, write_images
from processes import contents

from fruitveg_tl.models import quantisation
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.weights import bundled_file

pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'fruitveg-tl[grid]'")


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> list[str]:
    """Arguments for two runs of a few seconds, from the same source weights."""
    images = write_images(tmp_path_factory.mktemp("grid") / "images")
    wanted = ["run", "--dataset", str(images), *QUICK, "--weights", "bundled"]
    return [*wanted, "--seeds", "0", "1", "--backbones", "vgg16"]


@pytest.fixture(scope="module")
def disturbed(grid, tmp_path_factory) -> tuple[Path, str]:
    """Where two workers have written, of whom one was killed, and what was said of it."""
    home = tmp_path_factory.mktemp("two")
    process = subprocess.Popen(
        [sys.executable, "-m", "fruitveg_tl", *grid, "--workers", "2"],
        env=process_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (busy := _at_work()):
        time.sleep(0.2)
    os.kill(busy[0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return home, errors


def test_two_workers_give_the_same_results_and_a_killed_one_is_tried_again(
    grid, disturbed, tmp_path
):
    home, errors = disturbed
    assert errors.count("is tried again") == 1
    assert command(*grid, home=tmp_path).returncode == 0
    assert len(_results(home)) == 2
    assert _results(home) == _results(tmp_path)
    files = (home / "data" / "results").glob("*/provenance.json")
    reused = [json.loads(file.read_text())["frozen_part_reused"] for file in files]
    assert any(reused)  # computed by one run, awaited by the other


def test_finished_runs_stay_and_failed_ones_are_named_after_the_others(grid, disturbed, tmp_path):
    home, _ = disturbed
    before = {file: file.stat().st_mtime_ns for file in home.glob("data/results/*/metrics.json")}
    broken = tmp_path / "mobilenet_v2_imagenet_notop.weights.h5"
    broken.write_text("no weights")
    # The values that the finished runs started from, under a name that is found.
    vgg16 = BACKBONES["vgg16"].constructor(weights=None, include_top=False)
    vgg16.set_weights(quantisation.load(bundled_file(BACKBONES["vgg16"])))
    vgg16.save_weights(tmp_path / "vgg16_imagenet_notop.weights.h5")
    more = ["mobilenetv2", "--weights", "auto", "--workers", "2"]
    done = command(
        *grid,
        *more,
        home=home,
        FRUITVEG_WEIGHTS=str(tmp_path),
    )
    assert done.returncode == 2
    wrong = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(wrong) == 2
    for seed, line in enumerate(sorted(wrong)):
        assert f"mobilenetv2, transfer, seed {seed}: " in line
        assert broken.name in line
    assert "Traceback" not in done.stderr
    after = {file: file.stat().st_mtime_ns for file in home.glob("data/results/*/metrics.json")}
    assert after == before


def _results(home: Path) -> dict[str, dict[str, bytes]]:
    folders = (home / "data" / "results").glob("[!.]*")
    return {folder.name: contents(folder) for folder in folders}


def _at_work() -> list[int]:
    """Return the processes that Ray named after the function they run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = status.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if name.startswith(b"ray::_one"):
            found.append(int(status.parent.name))
    return found
