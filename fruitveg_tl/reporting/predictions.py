"""Predictions for people and for programs: a table, JSON, and which network answers."""

import json
import os
from collections.abc import Mapping, Sequence
from csv import QUOTE_NONNUMERIC
from pathlib import Path

import pandas as pd

from fruitveg_tl.data.images import IMAGE_SUFFIXES
from fruitveg_tl.studies import Run
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import STDOUT, file_target, is_stream, new_file

Answers = Sequence[tuple[Path, pd.Series]]  # from `predict.predict`


def source(run: Run) -> str:
    """Say in one line which network answers."""
    images = run.row["images"]
    return f"{run.name}: {run.backbone_name}, weights {run.weights}, trained on {images}"


def refuse_outputs(outputs: Mapping[str, Path], images: Sequence[Path], run: Run) -> None:
    """Refuse outputs that would overwrite what somebody still needs.

    Args:
        outputs: "csv", "json" or "html" to the file to write.
        images: files to be classified.
        run: whose network answers.

    Raises:
        InputError: if an output is a folder, an existing image, a part of the run or another
            output.
    """
    # Unlike Path.resolve, this lets links pass that lead in a circle.
    taken = {Path(os.path.realpath(image)): "one of the images" for image in images}
    for kind, path in outputs.items():
        free = path == STDOUT or is_stream(path)
        target = path if free else file_target(path)
        problem = taken.get(target)
        if run.folder.resolve() in target.parents:
            problem = "a part of the run that answers"
        elif not free and target.exists() and target.suffix.lower() in IMAGE_SUFFIXES:
            problem = problem or "an image"  # as a shell makes of --csv *.jpg
        if problem:
            raise InputError(f"--{kind} {printable(path)}: {problem}; give another file")
        taken[target] = "given twice"


def write_csv(file: Path, answers: Answers) -> None:
    """Write one row an image: its file, the predicted class, and every class's probability."""
    rows = [
        {"file": str(path), "predicted": found.index[0]} | found.sort_index().to_dict()
        for path, found in answers
    ]
    table = pd.DataFrame(rows).rename(columns=_harmless)
    for column in ("file", "predicted"):
        table[column] = [_harmless(text) for text in table.get(column, ())]
    with new_file(file) as temporary:
        table.to_csv(temporary, index=False, quoting=QUOTE_NONNUMERIC)


def write_json(file: Path, answers: Answers, run: Run) -> None:
    """Write which network answers, and for each image every class's probability."""
    images = [
        {"file": str(path), "probabilities": found.astype(float).to_dict()}
        for path, found in answers
    ]
    content = {"run": run.name, "weights": run.weights, "images": images}
    with new_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _harmless(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
