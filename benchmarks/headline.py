"""The three numbers a reader wants, from the stored results of the other scripts."""

import json
from pathlib import Path

from harness import HERE, save, start


def main() -> None:
    """Store one row a backbone."""
    whole, images = _rows("end_to_end"), _rows("prediction")
    rows = []
    for own in (row for row in whole if row["By"] == "this package"):
        name = own["Backbone"]
        fast = next(x for x in images if (x["Backbone"], x["Engine"]) == (name, "openvino"))
        rows.append(
            {
                "Backbone": name,
                "Training, times as fast as the usual recipe in Keras": own["Keras / this"],
                "… in PyTorch": own["PyTorch / this"],
                "One image (ms)": fast["One image (ms)"],
            }
        )
    save(Path(__file__).stem, rows)


def _rows(name: str) -> list[dict]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())["rows"]


if __name__ == "__main__":
    start(main)
