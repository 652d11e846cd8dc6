"""Runs side by side through Ray, and one run on two devices: the results of one after the other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK, command, process_environment, write_photographs
from processes import contents

pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'fruitveg-tl[grid]'")


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> list[str]:
    """Arguments for three runs of a few seconds, from the same source weights."""
    photographs = write_photographs(tmp_path_factory.mktemp("grid") / "photographs")
    wanted = ["--dataset", str(photographs), "--backbones", "vgg16", "--seeds", "0", "1", "2"]
    return ["run", *wanted, *QUICK, "--weights", "embedded"]


def test_two_workers_give_the_same_results_and_a_killed_one_is_tried_again(grid, tmp_path):
    assert command(*grid, home=tmp_path / "alone").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "fruitveg_tl", *grid, "--workers", "2"],
        env=process_environment(tmp_path / "two"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (busy := _at_work()):
        time.sleep(0.2)
    os.kill(busy[0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors.count("is tried again") == 1
    alone, two = (_results(tmp_path / name) for name in ("alone", "two"))
    assert len(two) == 3
    assert two == alone
    folders = (tmp_path / "two" / "data" / "results").glob("*/provenance.json")
    reused = [json.loads(file.read_text())["frozen_part_reused"] for file in folders]
    assert sum(reused) >= 2  # computed by one run, awaited by the others


def test_finished_runs_stay_and_failed_ones_are_named_after_the_others(grid, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "mobilenet_v2_imagenet_notop.weights.h5").write_text("no weights")
    options = [*grid[:3], *QUICK[2:]]  # without the weights asked for
    away = {"FRUITVEG_WEIGHTS": str(folder), "https_proxy": "http://127.0.0.1:9"}
    first = command(*options, "--backbones", "vgg16", home=tmp_path, **away)
    assert first.returncode == 0, first.stderr
    (kept,) = (tmp_path / "data" / "results").glob("*/metrics.json")
    written = kept.stat().st_mtime_ns
    more = ["--backbones", "mobilenetv2", "vgg16", "--seeds", "0", "1", "--workers", "2"]
    done = command(*options, *more, home=tmp_path, **away)
    assert done.returncode == 2
    wrong = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(wrong) == 2
    for seed, line in enumerate(sorted(wrong)):
        assert f"mobilenetv2, transfer, seed {seed}: " in line
        assert "mobilenet_v2_imagenet_notop.weights.h5" in line
    assert "Traceback" not in done.stderr
    assert kept.stat().st_mtime_ns == written
    assert len(_results(tmp_path)) == 2


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
