"""Runs in processes of their own that start quickly, to be disturbed by tests."""

import multiprocessing
import os
import resource
import sys
from pathlib import Path

import pandas as pd
import tensorflow as tf
from conftest import Quick

from fruitveg_tl import cli

# Its children are copies of a process that has the imports behind it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fruitveg_tl.run"])

# Of a row, what depends on the time that something took.
TIMES = ("seconds", "frozen part reused", "identity")


def contents(folder: Path) -> dict[str, object]:
    """Read every result that has to be the same however often a run was interrupted."""
    row = pd.read_csv(folder / "runs.csv").iloc[0]
    row = row[[name for name in row.index if not name.endswith(TIMES)]]
    names = ("config.json", "classes.json", "history.csv", "images.csv", "probabilities.npz")
    return {name: (folder / name).read_bytes() for name in names} | {"row": row.to_json()}


def child(home: str, quick: Quick, log: str, limit: int | None, eager: bool) -> None:
    """Run below `home`, as the command line would, in files of at most `limit` bytes."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ["FRUITVEG_HOME"] = home
    cli._run = lambda options: quick.train()  # all settings, not only options
    # Tracing a graph takes longer than these few steps.
    tf.config.run_functions_eagerly(eager)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(cli.main(["run"]))


def start(home: Path, quick: Quick, limit: int | None = None, eager: bool = True):
    """Start a run; returns the process and the file that it writes its messages to."""
    log = home.with_suffix(".log")
    process = PROCESSES.Process(target=child, args=(str(home), quick, str(log), limit, eager))
    process.start()
    return process, log


def finish(home: Path, quick: Quick, eager: bool = True) -> dict[str, object]:
    """Run to the end and return the results."""
    process, log = start(home, quick, eager=eager)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return found(home)


def found(home: Path) -> dict[str, object]:
    """Return the results of the one finished run below `home`."""
    folder = home / "data" / "runs"
    assert not list(folder.glob(".*.tmp/*")), "something half written"
    (run,) = folder.glob("[!.]*")
    return contents(run)
