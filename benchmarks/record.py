"""Where every benchmark puts its figures: a JSON file, and a table in benchmarks/README.md."""

import re
from pathlib import Path

import pandas as pd

from fruitveg_tl import results, runtime
from fruitveg_tl.storage import write_json

HERE = Path(__file__).parent


def save(name: str, rows: list[dict]) -> None:
    """Store a benchmark's rows with the machine they come from and fill its table in the README."""
    machine = runtime.environment()
    write_json(HERE / "results" / f"{name}.json", {"rows": rows, "environment": machine})
    readme = HERE / "README.md"
    table = results.markdown(pd.DataFrame(rows))
    origin = (
        f"{machine['cpu']}, {machine['cores']} cores, Keras {machine['libraries']['keras']} on "
        f"{machine['backend']}, commit {machine['commit'][:9]}"
    )
    readme.write_text(
        re.sub(
            rf"(<!-- {name} -->).*?(<!-- / -->)",
            lambda match: f"{match[1]}\n{table}\n\n{origin}\n{match[2]}",
            readme.read_text(),
            flags=re.DOTALL,
        )
    )
    print(table)
