"""The three numbers a reader wants, from the stored results of the other scripts."""

from pathlib import Path

from harness import save, start, stored


def main() -> None:
    """Store one row a backbone."""
    whole, images = stored("end_to_end"), stored("prediction")
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


if __name__ == "__main__":
    start(main)
