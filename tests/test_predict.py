"""Predictions as people ask for them: many files, some bad, into a table."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT, QUICK, assert_fits_screens, load_run, save_image, scene, write_images
from PIL import Image
from test_faults import replace_network

from fruitveg_tl import cli
from fruitveg_tl.classifier import Classifier
from fruitveg_tl.data.folders import find_images
from fruitveg_tl.studies import choose_run
from fruitveg_tl.utils.errors import InputError

CLASSES = ("=1+1", "päärynä", "001")


@pytest.fixture
def trained(finished):
    """A finished run."""
    return load_run(finished)


@pytest.fixture
def oddly_named(home, eager, tmp_path, capsys):
    """A run on classes whose names are not plain words."""
    root = write_images(tmp_path / "odd", CLASSES)
    assert cli.main(["run", "--dataset", str(root), "--backbones", "vgg16", *QUICK]) == 0
    return load_run(capsys.readouterr().out.splitlines()[0])


@pytest.fixture
def mine(tmp_path):
    """A folder with two good images, a bad one, one that is hidden, and a text."""
    folder = tmp_path / "mine"
    save_image(folder / "a.jpg", 0, 1)
    save_image(folder / "deep" / "b.PNG", 1, 2)
    save_image(folder / ".hidden" / "c.jpg", 1, 2)
    (folder / "note.txt").write_text("hello")
    (folder / "bad.jpg").write_text("no image")
    return folder


def test_files_folders_and_patterns_are_found_once_each(mine):
    a, b, bad = mine / "a.jpg", mine / "deep" / "b.PNG", mine / "bad.jpg"
    given = [str(b), str(mine), f"{mine}/*.jpg", f"{mine}/gone.jpg", f"{mine}/*.tif"]
    files, problems = find_images(given)
    assert files == [b, a, bad]
    assert [line.split(":")[0] for line in problems] == given[3:]


def test_the_good_are_answered_the_bad_named_and_all_is_written(
    oddly_named, mine, tmp_path, capsys
):
    table, answers = tmp_path / "out.csv", tmp_path / "out.json"
    arguments = [str(mine), str(mine / "gone.jpg"), "--top", "1"]
    code = cli.main(["predict", *arguments, "--csv", str(table), "--json", str(answers)])
    out, err = capsys.readouterr()
    assert code == 2
    problems = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(problems) == 2 and "gone.jpg" in problems[0] and "bad.jpg" in problems[1]
    assert f"answered by {oddly_named.folder.name}: VGG16, weights none (random), trained on" in err
    lines = out.splitlines()
    assert len(lines) == 2 and all(line.count("%") == 1 for line in lines)

    found = json.loads(answers.read_text())
    assert found["run"] == oddly_named.folder.name
    assert [sorted(image["probabilities"]) for image in found["images"]] == [sorted(CLASSES)] * 2
    assert sum(found["images"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-3)

    rows = pd.read_csv(table, dtype=str)
    assert rows.columns.tolist()[:2] == ["file", "predicted"]
    assert set(rows.columns[2:]) == {"'=1+1", "päärynä", "001"}  # no formula
    assert "=1+1" not in rows["predicted"].tolist()
    best = rows[rows.columns[2:]].astype(float).idxmax(axis=1)
    assert rows["predicted"].tolist() == best.tolist()


@pytest.mark.filterwarnings("error:The structure of")  # Keras': given another than it was built for
def test_the_page_shows_every_image_surest_first(trained, mine, tmp_path):
    save_image(mine / "<img src=x onerror=alert(1)>.jpg", 2, 9)
    page = tmp_path / "page.html"
    assert cli.main(["predict", f"{mine}/*.jpg", f"{mine}/deep", "--html", str(page)]) == 2
    text = page.read_text()
    assert text.count("<article>") == 3 and text.count("data:image/jpeg;base64,") == 6
    assert "<img src=x" not in text and "http" not in text
    sure = re.findall(r'<dl><dt>.*?<meter value="([\d.]+)"', text)
    assert len(sure) == 3 and sure == sorted(sure, reverse=True)


def test_the_page_fits_a_screen_and_runs_nothing(trained, mine, tmp_path, browser):
    save_image(mine / "<img src=x onerror=alert(1)>.jpg", 2, 9)
    page = tmp_path / "page.html"
    assert cli.main(["predict", f"{mine}/*.jpg", f"{mine}/deep", "--html", str(page)]) == 2
    for view in assert_fits_screens(browser, page):
        assert view.locator("article").count() == 3


def test_a_backbones_name_stands_for_its_best_run_by_validation(trained, tmp_path):
    other = shutil.copytree(trained.folder, trained.folder.with_name("other"))
    # Surer of what is true, by what was kept; the history tells of epochs that were not.
    run = load_run(other)
    better = np.eye(3, dtype=np.float16)[run.val_targets] * 0.9 + 0.1 / 3
    arrays = run.study.arrays() | {f"{run.name}/fine-tuned/val": better}
    np.savez(other / "probabilities.npz", **arrays)
    table = (other / "runs.csv").read_text()  # no copy: of another commit
    (other / "runs.csv").write_text(table.replace(run.row["commit"], "0" * 40))
    assert choose_run("VGG16").folder == other
    assert choose_run(trained.folder.name).folder == trained.folder
    with pytest.raises(InputError, match=r"no saved network of resnet50.*--backbones resnet50"):
        choose_run("resnet50")


def test_images_dealt_anew_train_a_network_like_any_other_and_an_ablation_is_the_last_resort(
    home, eager, tmp_path, capsys
):
    root = write_images(tmp_path / "mine", CLASSES)
    run = ["run", "--dataset", str(root), "--backbones", "vgg16", *QUICK]

    def answering(*more):
        assert cli.main([*run, *more]) == 0
        trained = capsys.readouterr().out.splitlines()[0]
        return Path(trained), choose_run().folder

    mistaken, chosen = answering("--divide-by-255")
    assert chosen == mistaken
    dealt, chosen = answering("--resplit")
    assert chosen == dealt
    assert answering("--divide-by-255", "--force") == (mistaken, dealt)
    plainer, chosen = answering("--mixup", "0")  # a choice of its user's, no ablation
    assert chosen == plainer


def test_a_damaged_or_foreign_run_is_named_and_the_others_answer(trained, mine, capsys):
    for name in ("damaged", "foreign"):
        folder = shutil.copytree(trained.folder, trained.folder.with_name(name))
        (folder / "runs.csv").write_text("{" if name == "damaged" else "run,accuracy\na,1")
    for command in (["table"], ["predict", str(mine / "a.jpg")]):
        assert cli.main(command) == 0
        err = capsys.readouterr().err
        for name in ("damaged", "foreign"):
            assert f"WARNING: {trained.folder.with_name(name)}: not a study" in err


def photos(folder: Path) -> list[Path]:
    """A large photo in each EXIF orientation, and images of other modes."""
    folder.mkdir()
    photo = scene(3).resize((4000, 3000))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(folder / f"{orientation}.jpg", exif=exif, quality=90)
    small = scene(4).resize((80, 60))
    transparent = small.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(small.size))
    transparent.save(folder / "rgba.png")
    small.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    grey = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
    Image.fromarray(grey).save(folder / "grey16.png")
    return sorted(folder.iterdir())


def test_the_plain_keras_of_readme_gives_the_answer_of_predict(trained, tmp_path, monkeypatch):
    # Random weights give every image the same answer; these see where the light is.
    keras.utils.set_random_seed(0)
    layers = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    replace_network(trained.folder, keras.Sequential([*layers, keras.layers.Dense(3, "softmax")]))
    files = photos(tmp_path / "photos")
    readme = (PROJECT / "README.md").read_text()
    (code,) = (x for x in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "keras" in x)
    code = code.replace("data/runs/RUN", str(trained.folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    answers = Classifier.load(trained.folder)(files)
    assert len({round(answer.probability, 3) for answer in answers}) > 3
    for file, answer in zip(files, answers, strict=True):
        names = {}
        with monkeypatch.context() as alone:  # without this package
            alone.setitem(sys.modules, "fruitveg_tl", None)
            exec(code.replace("apple.jpg", str(file)), names)
        given = dict(zip(names["classes"], names["probabilities"], strict=True))
        assert given == pytest.approx(answer.top, abs=1e-3), file
    monkeypatch.delitem(sys.modules, "preprocess")


def test_a_lost_network_is_answered_by_the_command_that_makes_it(trained, mine, capsys):
    (trained.folder / "model.keras").unlink()
    with pytest.raises(InputError) as caught:
        trained.load_model()
    words = shlex.split(str(caught.value).split("«")[1].split("»")[0])
    assert words[:3] == ["python", "-m", "fruitveg_tl"]
    assert cli.main(words[3:]) == 0
    assert (trained.folder / "model.keras").exists()
