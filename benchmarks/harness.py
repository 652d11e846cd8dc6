"""What the benchmarks share: every measurement in a process of its own, images, and the tables.

A script declares what it measures as functions, and hands them to `start`; `measure` runs one of
them in a new process with an empty `FRUITVEG_HOME` and watches its memory from outside. Nothing
beyond the standard library is imported up here: one script runs where this package is not
installed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATASET = "grocery" if "FRUITVEG_DATA" in os.environ else "synthetic"
PRECISIONS = ("float32", "mixed_bfloat16")


def start(main: Callable[[], None], *tasks: Callable[..., Any]) -> None:
    """Do what the command line asks for: `main`, or one task of `measure`."""
    if sys.argv[1:2] != ["--one"]:
        main()
        return
    name, arguments = json.loads(sys.argv[2])
    task = next(task for task in tasks if task.__name__ == name)
    print(json.dumps(task(*arguments)), flush=True)


def measure(
    task: str | Callable[..., Any],
    *arguments: Any,
    script: str = sys.argv[0],
    python: str = sys.executable,
    home: str | None = None,
    **environment: str,
) -> dict:
    """Run one task of a script in a process of its own.

    Args:
        task: a function of the script, or its name.
        *arguments: of the task, as JSON can hold them.
        script: where the task is; by default the script that runs.
        python: the interpreter.
        home: `FRUITVEG_HOME`; by default an empty folder that is removed afterwards.
        **environment: further variables.

    Returns:
        found: what the task returns; seconds: of the whole process; GiB: the most memory that the
        process and its children held for themselves at a time (RssAnon, looked at every 50 ms:
        pages of mapped files belong to the page cache, which the system takes back when it must).
    """
    name = task if isinstance(task, str) else task.__name__
    with ExitStack() as stack:
        home = home or stack.enter_context(tempfile.TemporaryDirectory())
        begin, highest = time.perf_counter(), 0.0
        process = subprocess.Popen(
            [python, script, "--one", json.dumps([name, arguments])],
            env=os.environ | {"FRUITVEG_HOME": home} | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None:
            highest = max(highest, _private_memory(process.pid))
            time.sleep(0.05)
        output = process.stdout.read()
        seconds = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{script}: {name}{tuple(arguments)} ended with {process.returncode}")
    return {"found": json.loads(output.splitlines()[-1]), "seconds": seconds, "GiB": highest}


def in_turn(works: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Return the seconds of each call, round by round, so that a disturbance meets them all.

    One more round goes before: it traces the graphs.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, call in works.items():
            begin = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def _private_memory(pid: int) -> float:
    """Return what a process and its children hold for themselves, in GiB."""
    import psutil

    total = 0
    with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, StopIteration):
        for process in [pid, *(child.pid for child in psutil.Process(pid).children(True))]:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            total += next(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))
    return total / 2**20


def train(root: str, backbone: str, **settings):
    """Train on a folder of images, from Keras' own order of weights; return the finished run."""
    from fruitveg_tl import run
    from fruitveg_tl.config import RunConfig, Selection
    from fruitveg_tl.data import registry

    (job,) = run.jobs(registry.load(root), Selection(root), [RunConfig(backbone, **settings)])
    return run.train(*job)


def link_images(root: Path, images: Iterable[tuple[str, str, Path]]) -> None:
    """Fill `root` with links, `<split>/<class>/<number>`, for (split, class, file) each."""
    for number, (split, label, file) in enumerate(images):
        link = root / split / label / f"{number}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def machine(environment: dict) -> str:
    """Name what times depend on, besides the code."""
    hardware = ", ".join(
        [environment["cpu"], f"{environment['cores']} cores", *environment["gpus"]]
    )
    return f"{hardware}, Keras {environment['libraries']['keras']} on {environment['backend']}"


def span(values: Iterable[float], form: str) -> str:
    """Write the lowest and the highest of some values."""
    values = list(values)
    return f"{min(values):{form}} to {max(values):{form}}"


def stored(name: str) -> list[dict]:
    """Return the rows that a script has stored."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())["rows"]


def save(name: str, rows: list[dict]) -> None:
    """Store a benchmark's rows with the machine they come from and fill its table in the README.

    What another backend or a graphics card gives is stored beside the rest, `name_jax_gpu`; the
    README needs a place for it.
    """
    import pandas as pd

    from fruitveg_tl.reporting import tables
    from fruitveg_tl.utils import runtime
    from fruitveg_tl.utils.storage import write_json

    environment = runtime.environment()
    if environment["backend"] != "tensorflow":
        name += f"_{environment['backend']}"
    if environment["gpus"]:
        name += "_gpu"
    write_json(HERE / "results" / f"{name}.json", {"rows": rows, "environment": environment})
    readme = HERE / "README.md"
    table = tables.markdown(pd.DataFrame(rows))
    origin = f"{machine(environment)}, commit {environment['commit'][:9]}"
    readme.write_text(
        re.sub(
            rf"(<!-- {name} -->).*?(<!-- / -->)",
            lambda match: f"{match[1]}\n{table}\n\n{origin}\n{match[2]}",
            readme.read_text(),
            flags=re.DOTALL,
        )
    )
    print(table)
