"""Names of classes are text, from the folder to the last figure, whatever they are made of."""

import json
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pypandoc
import pytest
from conftest import save_image
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fruitveg_tl import studies
from fruitveg_tl.config import FINETUNED, RunConfig
from fruitveg_tl.data import registry
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.data.folders import JUNK, SPLIT_WORDS
from fruitveg_tl.evaluation import metrics
from fruitveg_tl.reporting import notebook, plots, tables
from fruitveg_tl.reporting.exporter import MARKDOWN
from fruitveg_tl.utils.errors import printable

SPECIAL = st.sampled_from(
    [
        "001",
        "1",
        "2.5",
        "nan",
        "None",
        "True",
        "$$",
        "a|b",
        "*a*",
        "_b_",
        "`c`",
        "<script>x",
        "=1+1",
        "--",
        "&amp;",
        "\\n",
        "苹果",
        "ไทย",
        "a  b",
        '"q"',
        "#",
        "[x](y)",
        "@me",
    ]
)
ANY = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20
)


def usable(name: str) -> bool:
    folder = name.lower() in JUNK | SPLIT_WORDS.keys() or name.startswith(".")
    return not folder and len(name.encode()) < 200 and unicodedata.is_normalized("NFC", name)


NAMES = st.lists((SPECIAL | ANY).filter(usable), min_size=2, max_size=4, unique=True)


def store(folder: Path, images: Images) -> studies.Run:
    """Store what a run would, without the training."""
    targets = images.targets[images.rows("test")]
    probabilities = np.eye(len(images.classes), dtype=np.float16)[targets]
    config = RunConfig("vgg16")
    row = {
        "run": "run",
        "images": images.name,
        "backbone": "vgg16",
        "weights": "none (random)",
        "settings": json.dumps(config.to_dict()),
        "command": "",
    } | {f"{FINETUNED} {k}": v for k, v in metrics.evaluate(targets, probabilities).items()}
    shown = images.index[["split", "path", "label"]].assign(leaked="")
    shown.insert(0, "images", images.name)
    stem = f"run/{FINETUNED}"
    arrays = {f"{stem}/test": probabilities, f"{stem}/predicted": targets}
    history = pd.DataFrame([{"run": "run", "stage": FINETUNED, "epoch": 0, "val_loss": 1.0}])
    studies.save_tables(folder, pd.DataFrame([row]), history, shown, arrays)
    return next(iter(studies.read_study(folder)))


def shown_text(markdown: str) -> str:
    """What a reader sees of Markdown, in one line."""
    return " ".join(pypandoc.convert_text(markdown, "plain", MARKDOWN, ["--wrap=none"]).split())


@given(NAMES)
@example(["001", "1"])
@example(["$a$ $$", "<script>alert(1)"])
@example(["a|b*c*`d`", "苹果"])
@example(["new\nline", "tab\t"])
@settings(max_examples=15)
def test_any_name_survives_from_folder_to_figure(tmp_path_factory, names):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRUITVEG_HOME", str(home))
        root = home / "images"
        for number, name in enumerate(names):
            for split in ("train", "val", "test"):
                save_image(root / split / name / "0.jpg", number, len(split))
        dataset = registry.load(str(root))
        assert list(dataset.classes) == sorted(names)

        run = store(home / "data" / "runs" / "run", dataset)
        labels = dataset.index["label"][dataset.rows("test")].tolist()
        assert run.classes == list(dataset.classes) == sorted(labels)
        assert run.test["label"].tolist() == labels
        assert run.targets.tolist() == list(range(len(names)))

        expected = [" ".join(printable(name).split()) for name in run.classes]
        told = []
        patch.setattr(notebook, "display", lambda shown: told.append(shown.data))
        report = metrics.classification_report(run.targets, run.predicted[FINETUNED], run.classes)
        notebook.table(report)
        told.append(tables.markdown(report.reset_index()))
        for text in told:
            seen = shown_text(text)
            assert all(name in seen for name in expected), seen
            html = pypandoc.convert_text(text, "html", MARKDOWN)
            assert "<script" not in html and "<em>" not in html and 'class="math' not in html

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure = plots.confusion_matrix(
                metrics.confusion(run.targets, run.predicted[FINETUNED], len(names)), run.classes
            )
            assert plots.save_figure(figure, "confusion").exists()
            assert plots.save_figure(plots.f1_by_class({"VGG16": report}), "f1").exists()


def test_names_without_a_glyph_are_shown_by_their_codes():
    assert plots.drawable("kiwi") == "kiwi"
    assert plots.drawable("\U0010fffd") == "U+10FFFD "
