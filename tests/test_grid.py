"""Runs side by side through Ray: the results of one after the other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK, command, load_run, process_environment, write_images
from processes import contents

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
    runs = [load_run(file.parent) for file in (home / "data" / "runs").glob("*/runs.csv")]
    assert any(
        run.row["frozen part reused"] for run in runs
    )  # computed by one run, awaited by the other


def test_finished_runs_stay_and_failed_ones_are_named_after_the_others(grid, disturbed, tmp_path):
    home, _ = disturbed
    before = {file: file.stat().st_mtime_ns for file in home.glob("data/runs/*/runs.csv")}
    # VGG16 can be cut there, MobileNetV2 cannot.
    more = ["mobilenetv2", "--boundary", "block4_pool", "--workers", "2"]
    done = command(*grid, *more, home=home)
    assert done.returncode == 2
    wrong = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(wrong) == 2
    for seed, line in enumerate(sorted(wrong)):
        assert f"mobilenetv2, transfer, seed {seed}: boundary block4_pool" in line
    assert "Traceback" not in done.stderr
    after = {file: file.stat().st_mtime_ns for file in home.glob("data/runs/*/runs.csv")}
    assert after == before


def _results(home: Path) -> dict[str, dict[str, bytes]]:
    folders = (home / "data" / "runs").glob("[!.]*")
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
