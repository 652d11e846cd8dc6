"""Is the synthetic set trivial? Colour alone against the networks of finished runs on it."""

from pathlib import Path

from harness import save

from fruitveg_tl import studies
from fruitveg_tl.data import registry
from fruitveg_tl.evaluation import baselines, metrics
from fruitveg_tl.utils.errors import InputError


def main() -> None:
    """Store one row for colour, one for each finished run."""
    dataset = registry.load("synthetic")
    colour = baselines.colour_histogram(dataset)
    rows = [
        {"Model": "chance", "Accuracy": 1 / len(dataset.classes)},
        {
            "Model": "colour histogram, logistic regression",
            "Accuracy": metrics.evaluate(dataset.targets[dataset.rows("test")], colour)["accuracy"],
        },
    ]
    runs = studies.by_stage(studies.own_runs())
    if not len(runs) or "synthetic" not in set(runs["dataset"]):
        raise InputError("no finished run on the synthetic set; make them first: make run")
    for _, run in runs[runs["dataset"] == "synthetic"].iterrows():
        title = f"{run['model']}, {run['stage']} ({run['weights']})"
        rows.append({"Model": title, "Accuracy": run["accuracy"]})
    save(Path(__file__).stem, [row | {"Accuracy": f"{row['Accuracy']:.3f}"} for row in rows])


if __name__ == "__main__":
    main()
