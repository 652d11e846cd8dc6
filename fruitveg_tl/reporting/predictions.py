"""Predictions as CSV, JSON or an HTML page."""

import base64
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from csv import QUOTE_NONNUMERIC
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fruitveg_tl.classifier import Answer, Classifier
from fruitveg_tl.data.images import IMAGE_SUFFIXES, decode
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.compiled import BATCH
from fruitveg_tl.studies import Run
from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.storage import STDOUT, file_target, is_stream, new_file

Answers = Sequence[tuple[Path, Answer]]  # with all classes, without problems
TOP = 5
STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 75rem; padding: 0 1rem }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)) }
article { border: 1px solid #ccc; border-radius: 4px; padding: .7rem }
h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
img { width: 49%; height: auto }
dl { display: grid; grid-template-columns: 1fr 4rem; margin: .5rem 0 0 }
dt { overflow-wrap: anywhere } dd { margin: 0; text-align: right }
meter { grid-column: span 2; width: 100% }
"""


def source(run: Run) -> str:
    """Describe the predicting network in one line."""
    images = run.row["images"]
    return f"{run.name}: {run.backbone_name}, weights {run.weights}, trained on {images}"


def sure(classify: Classifier) -> str:
    """Say in one line from which probability the network's answers are sure."""
    if classify.coverage is None:
        return "this run has stored no confidence, so that every answer counts as sure"
    return (
        f'below {classify.min_confidence:.1%} the answer is "not sure"; '
        f"{classify.coverage:.0%} of the validation images are above, and 95% of those correct"
    )


def refuse_outputs(outputs: Mapping[str, Path], images: Sequence[Path], run: Run) -> None:
    """Refuse outputs that would overwrite images, the run or another output.

    Raises InputError if an output is a folder, an existing image, part of the run or another
    output.
    """
    # Unlike Path.resolve, this accepts circular links.
    taken = {Path(os.path.realpath(image)): "one of the images" for image in images}
    for kind, path in outputs.items():
        free = path == STDOUT or is_stream(path)
        target = path if free else file_target(path)
        problem = taken.get(target)
        if run.folder.resolve() in target.parents:
            problem = "a part of the run that answers"
        elif not free and target.exists() and target.suffix.lower() in IMAGE_SUFFIXES:
            problem = problem or "an image"  # as when a shell expands --csv *.jpg
        if problem:
            raise InputError(f"--{kind} {printable(path)}: {problem}; give another file")
        taken[target] = "given twice"


def write_csv(file: Path, answers: Answers) -> None:
    """Write one row per image: its file, predicted class and every class's probability."""
    rows = [
        {"file": str(path), "predicted": next(iter(answer.top))} | dict(sorted(answer.top.items()))
        for path, answer in answers
    ]
    table = pd.DataFrame(rows).rename(columns=_harmless)
    for column in ("file", "predicted"):
        table[column] = [_harmless(text) for text in table.get(column, ())]
    with new_file(file) as temporary:
        table.to_csv(temporary, index=False, quoting=QUOTE_NONNUMERIC)


def write_json(file: Path, answers: Answers, run: Run) -> None:
    """Write the network's name and every class's probability for each image."""
    images = [{"file": str(path), "probabilities": answer.top} for path, answer in answers]
    content = {"run": run.name, "weights": run.weights, "images": images}
    with new_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _harmless(text: str) -> str:
    """Escape names that a spreadsheet would read as formulas (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def write_page(file: Path, answers: Answers, run: Run) -> None:
    """Write one self-contained HTML page with Grad-CAM maps, most confident prediction first."""
    surest = sorted(answers, key=lambda answer: -answer[1].probability)
    title = html.escape(f"{len(surest)} images, answered by {source(run)}")
    with new_file(file) as temporary, temporary.open("w", encoding="utf-8") as page:
        page.write(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width">'
            f"<style>{STYLE}</style><h1>Predictions</h1><p>{title}</p><main>\n"
        )
        page.writelines(_articles(surest, run))
        page.write("</main></html>\n")


def _articles(answers: Answers, run: Run) -> Iterator[str]:
    # Keras and Matplotlib are imported only for the page.
    from fruitveg_tl.evaluation.explanations import gradcam
    from fruitveg_tl.reporting.plots import heat

    model, backbone = run.load_model(), BACKBONES[run.config.backbone]
    positions = {name: position for position, name in enumerate(run.classes)}
    for start in range(0, len(answers), BATCH):
        some = answers[start : start + BATCH]
        pixels = np.stack([decode(path, run.config.size, run.config.crop) for path, _ in some])
        predicted = np.array([positions[next(iter(answer.top))] for _, answer in some])
        maps = gradcam(model, backbone, pixels, predicted)
        for (path, answer), image, shaded in zip(some, pixels, heat(pixels, maps), strict=True):
            name = html.escape(printable(path))
            bars = "".join(
                f"<dt>{html.escape(label)}</dt><dd>{value:.1%}</dd>"
                f'<meter value="{value:.4f}"></meter>'
                for label, value in list(answer.top.items())[:TOP]
            )
            yield (
                f'<article><h2>{name}</h2><img alt="{name}" src="{_data(image)}">'
                f' <img alt="heat map" src="{_data(np.rint(255 * shaded).astype(np.uint8))}">'
                f"<dl>{bars}</dl></article>\n"
            )


def _data(pixels: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
