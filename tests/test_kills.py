"""Killed at any moment, a run loses nothing."""

import os
import signal
import time

import numpy as np
import pytest
from processes import finish, found, start

KILLS = 52


@pytest.mark.reliability("kills at random moments (SIGKILL, SIGINT)")
def test_killed_at_random_moments_nothing_is_lost(home, quick, tmp_path, tried):
    whole = finish(tmp_path / "first", quick)  # the first process takes long to start
    begin = time.perf_counter()
    assert finish(tmp_path / "timed", quick) == whole
    span = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    killed, finished = 0, 0
    while killed < KILLS:
        process, log = start(tmp_path / f"home {finished}", quick)
        # Now and then as late as the last step, mostly sooner, to save time.
        process.join(rng.uniform(0, span * (0.2 if killed % 8 else 1)))
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT if killed % 2 else signal.SIGKILL)
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0, log.read_text()
        if process.exitcode == 0:
            assert found(tmp_path / f"home {finished}") == whole
            finished += 1
    assert finish(tmp_path / f"home {finished}", quick) == whole
    tried(killed)
