import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import command, problems, save_image
from PIL import Image

from fruitveg_tl import cli, config
from fruitveg_tl.config import PATHS, PROFILES, RunConfig, Selection, divided, recipe
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.reporting import report

QUICK = ["--size", "32", "--views", "0", "--probe-epochs", "1", "--finetune-epochs", "1"]


@pytest.fixture
def main(home, eager, capsys):
    """Call the command line in this process: (exit code, output, error output)."""

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_run_table_and_predict_belong_together(main, images, tmp_path):
    run = ["run", "--dataset", images, "--backbones", "VGG16", "--weights", "random"]
    code, out, err = main(*run, "--seeds", 0, 1, *QUICK)
    assert code == 0
    assert "WARNING: VGG16: none (random)" in err
    assert "none (random)" in out
    code, out, _ = main("table", "--markdown")
    assert code == 0
    assert "| Dataset | Model | Pixels | Stage | Weights | Accuracy | Loss | Precision |" in out
    assert out.count("| images | VGG16 | 32 |") == 2  # two stages, seeds together
    mine = save_image(tmp_path / "mine with spaces.jpg", 1, 5)
    code, out, _ = main("predict", mine)
    assert code == 0
    assert out.startswith(str(mine)) and out.count("%") == 3
    assert {"apple", "banana", "cherry"} <= set(out.replace(",", " ").replace(":", " ").split())


def test_data_describes_a_dataset(main, images):
    code, out, _ = main("data", "--dataset", images)
    assert code == 0
    assert "3 classes; train 24, val 9, test 12" in out and "SHA-256" in out


def bad_image(folder: Path, kind: str) -> Path:
    file = folder / "train" / "apple" / "bad.jpg"
    if kind == "GIF":
        Image.new("P", (40, 40)).save(file, format="GIF")
    elif kind == "truncated":
        save_image(file, 0, 0)
        file.write_bytes(file.read_bytes()[:-300])
    else:
        file.write_bytes(b"" if kind == "empty" else b"Dear diary")
    return file


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "GIF"])
def test_bad_images_are_named_with_the_way_out(main, images, kind):
    file = bad_image(images, kind)
    arguments = ["run", "--dataset", images, "--backbones", "vgg16", "--weights", "random"]
    code, out, err = main(*arguments, *QUICK)
    lines = problems(err)
    assert code == 2 and len(lines) == 1 and out == ""
    assert lines[0].startswith(f"error: {file}: ") and "delete" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data", "--dataset", "nosuch"], "unknown dataset 'nosuch'"),
        (["run", "--backbones", "alexnet"], "unknown backbone 'alexnet'"),
        (
            ["run", "--backbones", "vgg16", "--weights", "gone.h5", "--size", "8"],
            "size: 8 is too small; at least 32",
        ),
        (["table"], "no finished run"),
        (["predict", "x.jpg"], "no saved network"),
        (["predict", "x.jpg", "--run", "nowhere"], "nowhere: no finished run"),
    ],
)
def test_wrong_names_give_one_line(main, arguments, named):
    code, _, err = main(*arguments)
    assert code == 2 and named in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1


def test_a_missing_weights_file_and_a_missing_class_are_named(main, images):
    code, _, err = main("run", "--dataset", images, "--backbones", "vgg16", "--weights", "no.h5")
    assert code == 2 and problems(err) == ["error: no.h5: no such weights file; correct the path"]
    for file in (images / "validation" / "cherry").iterdir():
        file.unlink()
    code, _, err = main("run", "--dataset", images, "--backbones", "vgg16")
    assert code == 2 and len(problems(err)) == 1
    assert "class 'cherry' has no images in val" in err


def test_as_a_process_exit_code_and_no_traceback(tmp_path):
    done = command("data", "--dataset", "nosuch", home=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    shown = command("run", "--help", home=tmp_path)
    assert shown.returncode == 0
    for option in ("--dataset", "--backbones", "--weights", "--seeds", "--force"):
        assert option in shown.stdout


def test_help_names_defaults_choices_and_backbones(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "any of vgg16, resnet50, mobilenetv2",
        "side of the images in pixels (default: 224; synthetic: 96)",
        "{transfer,scratch}",
        "--no-probe-first",
        "ablations, which every table names",
    ):
        assert expected in text
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("fruitveg-tl ")


def test_a_run_says_what_its_cache_needs_and_clean_frees_it(main, images):
    run = ["run", "--dataset", images, "--backbones", "vgg16", "--weights", "random", *QUICK]
    _, shown, err = main(*run)
    needed = float(re.search(r"its cache needs (\S+) MB more below .*clean» frees", err)[1])
    assert re.search(r"training and the network need \d+ MB of disk", err)
    cache = PATHS.cache
    files = [*cache.glob("activations/*-frozen-*/*.npy"), *cache.glob("pixels/*.npy")]
    assert len(files) == 3  # held out, and to train on
    assert needed == pytest.approx(sum(file.stat().st_size for file in files) / 1e6, abs=0.06)
    assert list(cache.glob("fits/*/kept.npz"))
    freed = ("activations", "pixels", "fits")
    stored = [file for name in freed for file in (cache / name).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in stored) / 1e6
    code, out, _ = main("clean")
    assert code == 0 and out.startswith(f"{size:,.1f} MB freed below ")
    assert not any(list(cache.glob(f"{name}/*")) for name in freed)
    assert main(*run)[1] == shown  # the finished run is still there


@pytest.mark.parametrize("dataset", ["my images", "synthetic", "grocery"])
@pytest.mark.parametrize(
    "change",
    [
        {"logit_adjustment": 0.0, "mixup": 0.0},
        {"probe_first": False, "resplit": 3, "weight_decay": 0.0},
        {"strategy": "scratch", "finetune_epochs": 30, "boundary": "block3_pool"},
    ],
)
def test_the_command_of_a_run_asks_for_that_run(dataset, change):
    fields = {"dataset": dataset, "backbone": "vgg16", "seed": 2} | PROFILES.get(dataset, {})
    which, how = divided(fields | change)
    selection, run = Selection(**which), RunConfig(**how)
    asked = asdict(selection) | asdict(run)
    program, *words = shlex.split(config.command(asked, recipe(dataset)))
    assert program == "python" and words[:2] == ["-m", "fruitveg_tl"]
    assert cli.asked_for(cli.parser().parse_args(words[2:])) == (selection, [run])


def test_an_ablation_is_an_option_of_its_own(main, images):
    run = ["run", "--dataset", images, "--backbones", "vgg16", "--weights", "random", *QUICK]
    code, out, _ = main(*run, "--no-probe-first", "--train-images-per-class", 2)
    assert code == 0 and "probe_first False" in out and "train_images_per_class 2" in out


def test_a_command_that_names_nothing_takes_the_defaults_and_the_variable(monkeypatch):
    monkeypatch.setattr(cli, "_load", lambda options: options)
    _, configs = cli.asked_for(cli.parser().parse_args(["run"]))
    assert [(c.backbone, c.seed) for c in configs] == [(name, 0) for name in BACKBONES]
    monkeypatch.setenv("FRUITVEG_DATASET", "grocery")
    for name in ("data", "run", "report"):
        assert cli.parser().parse_args([name]).dataset == "grocery"


def test_an_unknown_variable_ends_every_command(main, monkeypatch):
    monkeypatch.setenv("FRUITVEG_WEIGHT", "x")
    code, _, err = main("table")
    assert code == 2 and "FRUITVEG_WEIGHT: unknown variable" in err


def test_the_options_of_report_reach_the_notebooks(main, monkeypatch):
    asked = []
    monkeypatch.setattr(report, "report", lambda _, parameters: asked.append(parameters) or [])
    main("report", "--dataset", "grocery", "--resplit", 2, "--epochs", 3, "--size", 64)
    assert asked == [{"dataset": "grocery", "size": 64, "epochs": 3, "resplit": 2}]


def test_table_tells_committed_runs_from_own_ones(main, finished):
    shutil.copytree(finished, PATHS.results / "study")
    code, out, _ = main("table")
    assert code == 0
    assert "1 runs committed with the project" in out and "1 runs of this machine" in out
