"""What the benchmarks share: images, processes of their own, and where the figures go."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fruitveg_tl.reporting import tables
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.storage import write_json

HERE = Path(__file__).parent


def link_images(root: Path, images: Iterable[tuple[str, str, Path]]) -> None:
    """Fill `root` with links, `<split>/<class>/<number>`, for (split, class, file) each."""
    for number, (split, label, file) in enumerate(images):
        link = root / split / label / f"{number}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def in_own_process(script: str, task: list) -> dict:
    """Run a benchmark's script with `--one` and a task, and an empty home; return its last line."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, script, "--one", json.dumps(task)],
            env=os.environ | {"FRUITVEG_HOME": home},
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


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


def save(name: str, rows: list[dict]) -> None:
    """Store a benchmark's rows with the machine they come from and fill its table in the README.

    What another backend or a graphics card gives is stored beside the rest, `name_jax_gpu`; the
    README needs a place for it.
    """
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
