"""Runs in processes of their own that start quickly, to be disturbed by tests."""

import multiprocessing
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import tensorflow as tf
from conftest import redirect

from fruitveg_tl import cli
from fruitveg_tl.config import RunConfig
from fruitveg_tl.run import train_and_evaluate

# Its children are copies of a process that has the imports behind it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fruitveg_tl.run"])


# What must not depend on interruptions; provenance holds times, model.keras a time stamp.
SAME = ("config.json", "history.csv", "metrics.json", "classification_report.csv", "test.csv")


def contents(folder: Path) -> dict[str, bytes]:
    """Read every result that has to be the same however often a run was interrupted."""
    names = [*SAME, *(path.name for path in folder.glob("probabilities-*.npy"))]
    return {name: (folder / name).read_bytes() for name in names}


def child(home: str, settings: dict, log: str, limit: int | None, eager: bool) -> None:
    """Run below `home`, as the command line would, in files of at most `limit` bytes."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    redirect(Path(home))
    cli._run = lambda options: train_and_evaluate(
        RunConfig(**settings)
    )  # all settings, not only options
    # Tracing a graph takes longer than these few steps.
    tf.config.run_functions_eagerly(eager)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(cli.main(["run"]))


def start(home: Path, settings: RunConfig, limit: int | None = None, eager: bool = True):
    """Start a run; returns the process and the file that it writes its messages to."""
    log = home.with_suffix(".log")
    arguments = (str(home), asdict(settings), str(log), limit, eager)
    process = PROCESSES.Process(target=child, args=arguments)
    process.start()
    return process, log


def finish(home: Path, settings: RunConfig, eager: bool = True) -> dict[str, bytes]:
    """Run to the end and return the results."""
    process, log = start(home, settings, eager=eager)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return found(home)


def found(home: Path) -> dict[str, bytes]:
    """Return the results of the one finished run below `home`."""
    folder = home / "data" / "results"
    assert not list(folder.glob(".*.tmp/*")), "something half written"
    (run,) = folder.glob("[!.]*")
    return contents(run)
