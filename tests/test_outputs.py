"""Nothing that was there before is lost, whatever an output's name leads to."""

import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from conftest import PROJECT, load_run, process_environment, save_image, unprivileged

from fruitveg_tl import cli
from fruitveg_tl.classifier import Answer, Classifier
from fruitveg_tl.config import PATHS
from fruitveg_tl.data import synthetic
from fruitveg_tl.reporting import predictions, report
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import MARK, exclusive, new_folder, own_folder, remove

KEPT = "a stranger's"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of a user's: a file, a folder with a file, an image."""
    (tmp_path / "mine" / "thesis").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    for name in ("file.txt", "thesis/chapter.tex"):
        Path(name).write_text(KEPT)
    save_image(Path("photo.jpg"), 0, 0)
    save_image(Path("other.jpg"), 0, 1)
    return Path.cwd()


def contents(folder: Path) -> dict[str, object]:
    """Return what lies below a folder: bytes of files, targets of links, kinds of the rest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = path.readlink()
        elif path.is_file():
            found[str(path)] = path.read_bytes()
        else:
            found[str(path)] = path.stat().st_mode
    return found


def device(name: str) -> None:
    try:
        os.mknod(name, 0o600 | 0o020000, os.makedev(1, 3))  # the null device
    except PermissionError:
        pytest.skip("this user may not make devices")


# How to make the target of an output; "taken" targets must be refused and stay as they are.
TAKEN = {
    "folder": lambda name: shutil.copytree("thesis", name),
    "link to a folder": lambda name: Path(name).symlink_to("thesis"),
    "link to itself": lambda name: Path(name).symlink_to(name),
    "image": lambda name: None,
}
FREE = {
    "new": lambda name: None,
    "old output": lambda name: Path(name).write_text("old"),
    "link": lambda name: Path(name).symlink_to("file.txt"),
    "dangling link": lambda name: Path(name).symlink_to("nowhere.csv"),
    "FIFO": os.mkfifo,
    "device": device,
}


@pytest.fixture
def predict(finished, folder, monkeypatch, capsys):
    """Call `predict` with one output; the network itself is not asked."""
    top = dict.fromkeys(load_run(finished).classes, 1 / 3)
    answer = Answer(next(iter(top)), 1 / 3, top)
    monkeypatch.setattr(Classifier, "answers", lambda _, files, k: [answer] * len(files))
    monkeypatch.setattr(predictions, "_articles", lambda *_: [])

    def call(*options):
        code = cli.main(["predict", "photo.jpg", *map(str, options)])
        return code, capsys.readouterr()

    return call


@pytest.mark.parametrize("kind", ["csv", "json", "html"])
@pytest.mark.reliability("outputs of every kind of target")
def test_predict_writes_into_what_is_free_and_refuses_what_is_taken(predict, folder, tried, kind):
    for number, make in enumerate(TAKEN.values()):
        name = f"{number}.dat" if make != TAKEN["image"] else "other.jpg"
        make(name)
        before = contents(folder)
        code, said = predict(f"--{kind}", name)
        assert (code == 2 and said.err.startswith(f"error: --{kind} {name}: ")) or name in said.err
        assert said.err.count("\n") == 1 and contents(folder) == before, said.err
    for number, (what, make) in enumerate(FREE.items()):
        name = f"free{number}.{kind}"
        make(name)
        before = contents(folder)
        if what == "FIFO":
            reader = ThreadPoolExecutor(1).submit(Path(name).read_text)
        code, said = predict(f"--{kind}", name)
        assert code == 0, (what, said.err)
        after = contents(folder)
        written = {path for path in after if after[path] != before.get(path)}
        if what == "FIFO":
            assert "photo.jpg" in reader.result() or kind == "html"
        if what in ("FIFO", "device"):
            assert not written and set(after) == set(before)
        else:
            real = {"link": "file.txt", "dangling link": "nowhere.csv"}.get(what, name)
            assert written == {str(folder / real)}
            (folder / real).unlink()
    tried(len(TAKEN) + len(FREE))


@pytest.mark.reliability("outputs of every kind of target")
def test_predict_refuses_the_images_the_set_the_run_and_a_name_given_twice(
    predict, folder, finished, images, tried
):
    before = contents(folder), contents(images), contents(finished)
    targets = [
        folder / "photo.jpg", images, images / "test" / "apple" / "0.jpg", finished,
        finished / "runs.csv", finished / "new.csv",
    ]  # fmt: skip
    for target in targets:
        code, said = predict("--csv", target)
        assert code == 2 and said.err.count("\n") == 1 and str(target) in said.err
    code, said = predict("--csv", "out.csv", "--json", folder / "out.csv")
    assert code == 2 and "given twice" in said.err
    assert before == (contents(folder), contents(images), contents(finished))
    tried(len(targets) + 1)


def test_a_dash_is_standard_output_and_what_people_read_goes_elsewhere(predict, folder):
    before = contents(folder)
    code, said = predict("--json", "-")
    assert code == 0 and json.loads(said.out)["images"][0]["file"] == "photo.jpg"
    assert "photo.jpg: apple 33.3%" in said.err and contents(folder) == before
    assert predict("--csv", "-", "--json", "-")[0] == 2


@pytest.mark.reliability("outputs of every kind of target")
def test_predict_names_a_folder_that_may_not_be_written(predict, open_folder):
    (open_folder / "closed").mkdir(0o555)
    with unprivileged():
        code, said = predict("--csv", open_folder / "closed" / "out.csv")
    assert code == 2 and "permissions" in said.err and not list((open_folder / "closed").iterdir())


@pytest.mark.reliability("outputs of every kind of target")
def test_export_makes_a_new_folder_or_nothing(folder, finished, images, capsys, tried):
    Path("link").symlink_to("thesis")
    os.mkfifo("fifo")
    before = contents(folder), contents(images), contents(finished)
    taken = ["file.txt", "thesis", "link", "fifo", "photo.jpg", images, finished]
    for target in map(str, taken):
        code = cli.main(["export", target, "--format", "openvino", "--run", str(finished)])
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and target in line
    assert before == (contents(folder), contents(images), contents(finished))
    Path("dangling").symlink_to("elsewhere")
    assert cli.main(["export", "dangling", "--format", "openvino", "--run", str(finished)]) == 0
    assert Path("elsewhere", "model.xml").exists() and Path("dangling").is_symlink()
    tried(len(taken) + 1)


@pytest.mark.reliability("outputs of every kind of target")
def test_a_report_takes_no_folder_for_its_files(folder, tried):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One")])
    nbformat.write(notebook, "one.ipynb")
    for taken in ("live.pdf", "live.html", "live/report.typ"):
        shutil.copytree("thesis", Path("report", taken))
        before = contents(folder / "report")
        with pytest.raises(InputError, match="a folder; give the name of a file"):
            report.export([Path("one.ipynb")], Path("report"), "live", "a test")
        assert before.items() <= contents(folder / "report").items()
        shutil.rmtree("report")
    with pytest.raises(InputError, match="a folder"):
        report.execute(Path("one.ipynb"), Path("thesis"))
    assert Path("thesis", "chapter.tex").read_text() == KEPT
    tried(4)


@pytest.mark.reliability("outputs of every kind of target")
def test_the_generated_set_never_replaces_what_bears_its_name(home, folder, capsys, tried):
    PATHS.data.mkdir(parents=True)
    for taken in ("thesis", "file.txt"):
        target = PATHS.data / "synthetic"
        (shutil.copytree if Path(taken).is_dir() else shutil.copy)(taken, target)
        before = contents(home)
        assert cli.main(["data", "--dataset", "synthetic"]) == 2
        assert before.items() <= contents(home).items()
        assert capsys.readouterr().err.count("error: ") == 1
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    tried(2)


@pytest.mark.reliability("outputs of every kind of target")
def test_only_a_folder_of_ours_is_replaced_or_removed(folder, finished, quick, tried):
    for stranger in (folder / "thesis", folder / "file.txt"):
        before = contents(folder)
        with pytest.raises(InputError, match=f"did not make it .it holds no {MARK}"):
            remove(stranger)
        with pytest.raises(InputError, match="did not make it"), new_folder(stranger):
            pass
        own_folder(stranger.with_name("thesis"))
        assert contents(folder) == before
    own = own_folder(folder / "own")
    with new_folder(own) as temporary:
        (temporary / "x").write_text("ours")
    assert (own / "x").read_text() == "ours"
    assert remove(own) > 0 and not own.exists()
    (finished / MARK).unlink()  # as if somebody's folder had this name
    with pytest.raises(InputError, match="did not make it"):
        quick.train(force=True)
    tried(5)


def test_clean_leaves_a_strangers_cache_alone(home, folder, capsys):
    shutil.copytree("thesis", PATHS.cache / "pixels")
    assert cli.main(["clean"]) == 2
    assert "did not make it" in capsys.readouterr().err
    assert (PATHS.cache / "pixels" / "chapter.tex").exists()


WRITERS = {
    "write_text", "write_bytes", "to_csv", "savefig", "save", "savez_compressed", "copyfile",
    "rmtree", "unlink", "symlink_to", "rmdir", "os.replace", "os.rename", "os.remove",
    "shutil.move", "shutil.copy", "shutil.copytree",
}  # fmt: skip
GUARDS = {"new_file", "new_folder"}


def test_every_writer_of_the_package_goes_through_one_of_two_functions():
    """A call that writes or removes stands in a block of a guard, or in a helper given its path."""
    # What is written is not a path's: a buffer, an open file, or a temporary that a guard made.
    helpers = {
        "storage.py": None,
        "predictions.py": {"_data"},  # into memory
        "export.py": {"_remove_unused_inputs"},
        "synthetic.py": {"_save"},
        "grocery.py": {"_unpack", "_fetch_grocery"},  # its own archive in the cache
        "weights.py": {"resolve"},  # a download of this call
        "plots.py": {"save_figure"},
    }
    found = []
    for file in (PROJECT / "fruitveg_tl").rglob("*.py"):
        allowed = helpers.get(file.name, set())
        if allowed is None:
            continue
        tree = ast.parse(file.read_text())
        inside = set()
        for node in ast.walk(tree):
            guards = isinstance(node, ast.With) and any(
                isinstance(item.context_expr, ast.Call)
                and getattr(item.context_expr.func, "id", "") in GUARDS
                for item in node.items
            )
            if guards or (isinstance(node, ast.FunctionDef) and node.name in allowed):
                inside |= set(map(id, ast.walk(node)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in inside:
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                modes = [x.value for x in node.args if isinstance(x, ast.Constant)]
                opens = name == "open" and any(str(mode)[:1] in ("w", "a", "x") for mode in modes)
                qualified = f"{getattr(getattr(node.func, 'value', None), 'id', '')}.{name}"
                if {name, qualified} & WRITERS or opens:
                    found.append(f"{file.name}:{node.lineno} {name}")
    assert found == []


def test_generated_images_appear_whole_and_once(home, monkeypatch):
    monkeypatch.setattr(synthetic, "COUNTS", {"train": 1, "val": 1, "test": 1})
    made = synthetic.generate(PATHS.data / "synthetic")
    assert len(list(made.rglob("*.png"))) == 3 * 8 and (made / MARK).exists()


def test_a_folder_that_appears_meanwhile_is_kept_and_a_killed_replacement_undone(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(InputError, match="did not make it"), new_folder(target) as temporary:
        (temporary / "ours").write_text("x")
        target.mkdir()
        (target / "thesis").write_text(KEPT)
    assert (target / "thesis").read_text() == KEPT and len(list(tmp_path.iterdir())) == 1
    # Killed when the old folder was put aside and the new one not yet in its place.
    stale = tmp_path / ".run.abc.tmp"
    (stale / "replaced").mkdir(parents=True)
    (stale / "replaced" / "old").write_text("x")
    (stale / "run").mkdir()
    with exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / "old").read_text() == "x" and not stale.exists()


def test_predict_without_an_answer_leaves_its_outputs_as_they_are(predict, folder):
    Path("old.csv").write_text(KEPT)
    code = cli.main(["predict", "gone*.jpg", "--csv", "old.csv"])
    assert code == 2 and Path("old.csv").read_text() == KEPT


def test_a_circle_of_links_among_the_images_is_named(predict, folder):
    Path("circle").mkdir()
    Path("circle/loop.jpg").symlink_to("loop.jpg")
    assert cli.main(["predict", "circle", "--csv", "circle.csv"]) == 0


def test_a_full_standard_output_ends_with_one_line(finished):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fruitveg_tl", "table"],
            env=process_environment(finished.parents[2]),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "free space" in done.stderr
