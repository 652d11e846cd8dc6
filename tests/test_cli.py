from pathlib import Path

import pytest
from conftest import command, save_image
from PIL import Image

from fruitveg_tl import cli

QUICK = ["--size", "32", "--views", "0", "--probe-epochs", "1", "--finetune-epochs", "1"]


@pytest.fixture
def main(home, capsys):
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
    lines = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert code == 2 and len(lines) == 1 and out == ""
    assert lines[0].startswith(f"error: {file}: ") and "delete" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data", "--dataset", "nosuch"], "unknown dataset 'nosuch'"),
        (["run", "--backbones", "alexnet"], "unknown backbone 'alexnet'"),
        (["run", "--backbones", "vgg16", "--weights", "gone.h5", "--size", "8"], "size 8"),
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
    assert code == 2 and err == "error: no.h5: no such weights file; correct the path\n"
    for file in (images / "validation" / "cherry").iterdir():
        file.unlink()
    code, _, err = main("run", "--dataset", images, "--backbones", "vgg16")
    assert code == 2 and len(err.splitlines()) == 1
    assert "class 'cherry' has no images in val" in err


def test_as_a_process_exit_code_and_no_traceback(tmp_path):
    done = command("data", "--dataset", "nosuch", home=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    shown = command("run", "--help", home=tmp_path)
    assert shown.returncode == 0
    for option in ("--dataset", "--backbones", "--weights", "--seeds", "--force"):
        assert option in shown.stdout
