"""The files around the package: what they promise about each other."""

import importlib
import json
import logging
import pkgutil
import re
import tomllib

import pandas as pd
import yaml
from conftest import PROJECT

import fruitveg_tl
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.reporting import tables

# What programs write, and what lies inside archives.
LATER = ("data", "figures", "report", "dataset")


def pins(text: str) -> dict[str, str]:
    """Return name: version of every `name==version` that holds for Python 3.11."""
    lines = re.findall(r"^([\w\-]+)(?:\[.*\])?==([\w.]+)(.*)$", text, re.MULTILINE)
    return {name: version for name, version, rest in lines if ">= '3.1" not in rest}


def test_every_module_imports():
    for module in pkgutil.walk_packages(fruitveg_tl.__path__, "fruitveg_tl."):
        if module.name != "fruitveg_tl.__main__":
            importlib.import_module(module.name)


def test_files_and_names_that_texts_mention_exist():
    """A path, or in backticks the name of something in a module."""
    names = [module.name for module in pkgutil.walk_packages(fruitveg_tl.__path__, "fruitveg_tl.")]
    modules = {n.rsplit(".", 1)[1]: importlib.import_module(n) for n in names if "__" not in n}
    places = (PROJECT, PROJECT / "fruitveg_tl", PROJECT / "data")
    missing = []
    for file in (
        *PROJECT.glob("fruitveg_tl/**/*.py"),
        *PROJECT.glob("*.md"),
        *PROJECT.glob("*/*.md"),
    ):
        text = file.read_text()
        paths = re.findall(
            r"(?<![\w/])(?:benchmarks|tests|data/tuning|data/weights)/[\w./-]*\w", text
        )
        for word in [*re.findall(r"`([\w./-]+)`", text), *paths]:
            module, _, name = word.partition(".")
            if "/" in word:
                there = [p / (word + end) for p in (file.parent, *places) for end in ("", ".py")]
                known = any(path.exists() for path in there) or word.split("/")[0] in LATER
            elif module in modules and name.isidentifier():
                known = hasattr(modules[module], name) or name in ("py", "typ")
            else:
                continue
            if not known:
                missing.append(f"{file.relative_to(PROJECT)}: {word}")
    assert missing == []


def test_conda_environment_and_lock_name_the_same_versions():
    locked = pins((PROJECT / "requirements" / "cpu.lock").read_text())
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    listed = next(x["pip"] for x in environment["dependencies"] if isinstance(x, dict))
    versions = pins("\n".join(listed))
    assert {name: locked[name] for name in versions} == versions
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    cpu = [line for line in extras["cpu"] if "platform_machine == 'x86_64'" in line]
    wanted = [*project["dependencies"], *cpu, *extras["notebooks"], *extras["dev"]]
    assert {re.split(r"[<>=\[]", requirement)[0] for requirement in wanted} == set(versions)


def test_both_locks_differ_in_tensorflow_alone():
    cpu, gpu = (
        pins((PROJECT / "requirements" / f"{kind}.lock").read_text()) for kind in ("cpu", "gpu")
    )
    assert cpu.pop("tensorflow-cpu") == cpu.pop("tensorflow") == gpu.pop("tensorflow")
    assert {k: v for k, v in gpu.items() if not k.startswith("nvidia-")} == cpu


def test_no_lock_names_a_host():
    for file in (PROJECT / "requirements").iterdir():
        assert "://" not in file.read_text()


def test_tensorflow_warnings_stay_silent_and_errors_do_not():
    logger = logging.getLogger("tensorflow")
    assert not logger.filter(logging.makeLogRecord({"levelno": logging.WARNING}))
    assert logger.filter(logging.makeLogRecord({"levelno": logging.ERROR}))


def test_the_readme_of_the_tests_tells_what_the_tests_of_reliability_found():
    """`pytest --readme` writes the table; here only that none of its rows is missing or lost."""
    readme = (PROJECT / "tests" / "README.md").read_text()
    table = re.search(r"<!-- reliability -->\n(.*?)\n<!-- /reliability -->", readme, re.DOTALL)[1]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    found = {what: counts for what, *counts in rows}
    tests = "".join(file.read_text() for file in (PROJECT / "tests").rglob("test_*.py"))
    assert set(found) == set(re.findall(r'mark\.reliability\("(.*?)"\)', tests))
    for what, (tried, survived, lost) in found.items():
        assert int(tried) == int(survived) > 0 and int(lost) == 0, what
    assert int(found["kills at random moments (SIGKILL, SIGINT)"][0]) >= 50


def test_the_tables_of_the_benchmarks_are_those_of_their_results():
    readme = (PROJECT / "benchmarks" / "README.md").read_text()
    shown = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- / -->", readme, re.DOTALL))
    files = (PROJECT / "benchmarks" / "results").glob("*.json")
    measured = {f.stem: json.loads(f.read_text()) for f in files if not f.stem.endswith("-runs")}
    assert set(shown) == set(measured)
    for name, content in measured.items():
        # The stored rows are sorted by key; the table keeps the order of the script.
        columns = shown[name].splitlines()[0].strip("| ").split(" | ")
        table = tables.markdown(pd.DataFrame(content["rows"])[columns])
        commit = content["environment"]["commit"]
        assert shown[name].startswith(f"{table}\n"), name
        assert f"commit {commit[:9]}\n" in shown[name], name


def test_the_registry_says_bfloat16_where_the_tuning_log_allows_it():
    """At most 0.2 percentage points of accuracy, and half a percent of the predictions."""
    log = pd.read_csv(PROJECT / "data" / "tuning" / "precision.csv")
    assert (log.groupby(["backbone", "trained on"]).size() == 3).all()
    for key, rows in log.groupby("backbone"):
        trained = rows.groupby("trained on")["accuracy in float32"].mean()
        lost = trained["float32"] - trained["mixed_bfloat16"]
        allowed = lost <= 0.002 and rows["predictions changed"].mean() <= 0.005
        assert BACKBONES[key].frozen_bfloat16 == allowed


def test_the_test_of_every_promise_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (PROJECT / "tests/PROMISES.md").read_text())
    assert len(named) > 50
    gone = [name for file, name in named if f"def {name}(" not in (PROJECT / file).read_text()]
    assert gone == []
