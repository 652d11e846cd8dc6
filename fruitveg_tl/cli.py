"""The command line: data, run, table, report, predict, export, study, clean.

Every setting's default, choices and help come from `config`.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fruitveg_tl import __version__
from fruitveg_tl.config import (
    PATHS,
    PROFILES,
    SYNTHETIC,
    RunConfig,
    Selection,
    divided,
    refuse_unknown_variables,
    settings,
    variable,
)
from fruitveg_tl.models.backbones import BACKBONES, backbone_by_name
from fruitveg_tl.utils.errors import STOPPED, InputError, printable
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import STDOUT, new_file, remove

if TYPE_CHECKING:
    from fruitveg_tl.data.dataset import Images

# Heavy imports are inside the commands, so that --help comes at once.

EXPORT_FORMATS = ("onnx", "litert", "saved_model", "openvino")  # of fruitveg_tl.export
_WAYS_OUT = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space") | {
    errno.EACCES: "correct the permissions",
    errno.EPERM: "correct the permissions",
    errno.EROFS: "choose a writable disk (FRUITVEG_HOME)",
    errno.ENAMETOOLONG: "shorten the name",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    It is 0; 2 for unusable input or a file that cannot be written, with one line per problem on
    standard error; 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    try:
        refuse_unknown_variables()
        options.call(options)
        sys.stdout.flush()
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has stopped reading, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at the end
        return 0
    except OSError as error:
        sys.unraisablehook = lambda _: None  # HDF5 repeats that it cannot close its file
        where = f"{printable(error.filename)}: " if error.filename else ""
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        way_out = _WAYS_OUT.get(error.errno, "correct that")
        print(
            f"error: {where}{reason}; {way_out}, then give the same command again: finished steps "
            "are kept",
            file=sys.stderr,
        )
        return 2
    except MemoryError:
        print(
            "error: not enough memory; close other programs, or choose a smaller --size or "
            "--batch-size",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    return 0


def _data(options: argparse.Namespace) -> None:
    dataset = _load(options)
    counts = dataset.index.groupby(["label", "split"]).size().unstack()
    print(counts[list(dataset.split_sizes())].to_string())
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.split_sizes().items())
    print(f"\n{dataset.name}: {len(dataset.classes)} classes; {sizes}")
    print(f"folder {dataset.root}\nSHA-256 {dataset.digest}")


def _load(options: argparse.Namespace) -> "Images":
    """Load the images that the options name, and warn of unreliable scores."""
    from fruitveg_tl.data import audit, folders, registry

    fold = options.resplit or 0
    dataset = registry.load(options.dataset, options.label_level, options.data, fold)
    for warning in (
        folders.passed_over(dataset.root),
        audit.exact_leaks(dataset),
        audit.few_test_images(dataset),
    ):
        if warning:
            print(f"WARNING: {warning}", file=sys.stderr)
    return dataset


def _run(options: argparse.Namespace) -> None:
    selection, configs = asked_for(options)
    images = _load(options)
    from fruitveg_tl import grid, run, studies
    from fruitveg_tl.reporting import tables

    jobs = list(run.jobs(images, selection, configs))
    if options.workers is not None:
        runs = grid.run_grid(jobs, options.workers, options.force)
    else:
        runs = []
        for job in jobs:
            runs.append(run.train(*job, options.force))
            print(runs[-1].folder)
    print(tables.evaluated_models(studies.by_stage(runs)).to_string(index=False))


def asked_for(options: argparse.Namespace) -> tuple[Selection, list[RunConfig]]:
    """Return the selection and configurations; `run`'s options override the profile.

    Raises InputError if a backbone is unknown or a setting is invalid.
    """
    names = [f.name for f in settings() if f.name not in ("dataset", "backbone", "seed")]
    asked = {name: getattr(options, name) for name in names}
    profile = PROFILES.get(options.dataset, {})
    given = profile | {name: value for name, value in asked.items() if value is not None}
    which, how = divided(given)
    return Selection(options.dataset, **which), [
        RunConfig(backbone_by_name(name).key, seed=seed, **how)
        for name in options.backbones
        for seed in options.seeds
    ]


def _table(options: argparse.Namespace) -> None:
    from fruitveg_tl import studies
    from fruitveg_tl.reporting import readme, tables

    runs = studies.committed_runs()
    if options.readme:
        runs = studies.by_stage(runs)
        for file in filter(Path.exists, (PATHS.root / name for name in readme.FILES)):
            filled = readme.fill(file.read_text(), runs)
            with new_file(file) as temporary:
                temporary.write_text(filled)
        return
    sources = {"committed with the project": runs, "of this machine": studies.own_runs()}
    if not any(sources.values()):
        raise InputError("no finished run yet; start one with «python -m fruitveg_tl run»")
    for source, found in sources.items():
        if found:
            table = tables.evaluated_models(studies.by_stage(found))
            text = tables.markdown(table) if options.markdown else table.to_string(index=False)
            print(f"{len(found)} runs {source}:\n\n{text}\n")


def _report(options: argparse.Namespace) -> None:
    from fruitveg_tl.data import registry
    from fruitveg_tl.reporting import report

    parameters = {
        "dataset": registry.located(options.dataset),  # kernels may run in another folder
        "size": options.size,
        "epochs": options.epochs,
        "resplit": options.resplit or 0,
    }
    for file in report.report(PATHS.report, None if options.in_place else parameters):
        print(file)


def _predict(options: argparse.Namespace) -> None:
    from fruitveg_tl.classifier import Classifier
    from fruitveg_tl.data.folders import find_images
    from fruitveg_tl.reporting import predictions
    from fruitveg_tl.studies import choose_run

    if options.top < 1:
        raise InputError(f"--top {options.top}: at least 1")
    files, problems = find_images(options.images)
    run = choose_run(options.run)
    kinds = {kind: getattr(options, kind) for kind in ("csv", "json", "html")}
    outputs = {kind: path for kind, path in kinds.items() if path}
    predictions.refuse_outputs(outputs, files, run)
    print(f"answered by {predictions.source(run)}", file=sys.stderr)
    shown = sys.stderr if STDOUT in outputs.values() else sys.stdout
    answers = []
    if files:
        classify = Classifier.load(run.folder)
        print(predictions.sure(classify), file=sys.stderr)
        found = classify.answers(files, len(classify.classes))
        for path, answer in zip(files, progress("predict", len(files), found), strict=True):
            if answer.problem:
                problems.append(answer.problem)
                continue
            answers.append((path, answer))
            top = list(answer.top.items())[: options.top]
            best = ", ".join(f"{printable(name)} {value:.1%}" for name, value in top)
            doubt = "" if answer.label else "not sure: "
            print(f"{printable(path)}: {doubt}{best}", file=shown)
    if not answers:
        raise InputError("\n".join(problems))
    if options.csv:
        predictions.write_csv(options.csv, answers)
    if options.json:
        predictions.write_json(options.json, answers, run)
    if options.html:
        from fruitveg_tl.reporting.predictions import write_page

        write_page(options.html, answers, run)
    if problems:
        raise InputError("\n".join(problems))


def _export(options: argparse.Namespace) -> None:
    from fruitveg_tl.export import export
    from fruitveg_tl.studies import choose_run

    run = choose_run(options.run)
    file, difference = export(run, options.format, options.folder)
    print(f"{run.name}: {file}; probabilities differ by at most {difference:.1e}")


def _study(options: argparse.Namespace) -> None:
    from fruitveg_tl import studies

    plan = studies.to_publish()
    for name, runs in plan.items():
        print(f"{PATHS.results / name}: will be rewritten with {len(runs)} runs of this machine")
    for name, runs in plan.items():
        studies.publish(name, runs)
    print(f"{len(plan)} studies written" if plan else f"no run below {PATHS.runs} is of a study")


def _clean(options: argparse.Namespace) -> None:
    freed = sum(remove(PATHS.cache / name) for name in ("pixels", "activations", "fits", "weights"))
    print(f"{freed / 1e6:,.1f} MB freed below {PATHS.cache}")


# --- options --------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has the function to `call`."""
    whole = _Parser(
        prog="python -m fruitveg_tl",
        description="Transfer learning on images of fruit and vegetables.",
    )
    whole.add_argument("--version", action="version", version=f"fruitveg-tl {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Callable, text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=more or None)
        added.set_defaults(call=call)
        return added

    _add_data(command("data", _data, "fetch or generate a data set and describe it"))
    _add_run(
        command(
            "run",
            _run,
            "train and evaluate networks; finished runs are kept",
            "Train and evaluate networks. Give the command of a killed run again to continue it; "
            "a finished run is not repeated.",
        )
    )
    _add_table(command("table", _table, "print the table of evaluated models"))
    _add_report(
        command(
            "report",
            _report,
            "execute the notebooks and bind them into a PDF and an HTML file",
            "Execute the notebooks in order and bind them into report/live.pdf and .html; the "
            "committed ones become report/study.pdf and .html. Finished runs are not repeated.",
        )
    )
    _add_predict(command("predict", _predict, "classify images with a saved network"))
    _add_export(command("export", _export, "write a saved network in another format"))
    command(
        "study",
        _study,
        "for the project's authors: put the runs of this machine into data/results",
        "Replaces the rows of the committed studies by the runs below data/runs that were trained "
        "alike, and adds others on the same images. First it says what it will write.",
    )
    command("clean", _clean, "free the disk that decoded images and activations take; results stay")
    return whole


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, and suggests options similar to an unknown one."""

    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        options = re.findall(r"--[a-z][\w-]+", self.format_help())
        for word in rest:
            near = dict.fromkeys(x for x in options if word[2:].split("=")[0] in x)
            if word.startswith("--") and near:
                self.error(f"unknown option {word}; did you mean {' or '.join(near)}?")
        return found, rest


def _add_dataset(parser: Any) -> None:
    parser.add_argument(
        "--dataset",
        default=variable("DATASET") or SYNTHETIC,
        help=f"{', '.join(PROFILES)}, or a folder of class folders (default: FRUITVEG_DATASET, "
        "else synthetic)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("--data", help="a copy of the data set on disk (default: FRUITVEG_DATA)")
    _add_settings(parser, (f for f in settings() if f.name in ("label_level", "resplit")))


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=list(BACKBONES),
        metavar="NAME",
        help=f"any of {', '.join(BACKBONES)} (default: all)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="one run each (default: 0)"
    )
    parser.add_argument("--force", action="store_true", help="repeat finished runs")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of runs at a time, through Ray"
    )
    own = ("dataset", "backbone", "seed", "label_level", "resplit")  # added above
    usual = (f for f in settings(ablations=False) if f.name not in own)
    _add_settings(parser.add_argument_group("settings"), usual)
    ablations = parser.add_argument_group("ablations, which every table names")
    _add_settings(ablations, (f for f in settings(ablations=True) if f.name not in own))


def _add_settings(parser: Any, fields: Iterable[Field]) -> None:
    """Add an option for each field, with default None, so that a profile may set it."""
    for field in fields:
        kind, default = field.metadata["kind"], field.default
        option = {"help": field.metadata["help"], "default": None}
        if default is not None:
            option["help"] += f" (default: {default}{_profiles(field.name)})"
        if kind is bool:
            option["action"] = argparse.BooleanOptionalAction
        else:
            option |= {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}
        if const := field.metadata.get("const"):
            option |= {"nargs": "?", "const": const}
        if choices := field.metadata.get("choices"):
            option |= {"choices": choices, "metavar": None}
        parser.add_argument("--" + field.name.replace("_", "-"), **option)


def _profiles(name: str) -> str:
    values = (f"; {key}: {profile[name]}" for key, profile in PROFILES.items() if name in profile)
    return "".join(values)


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="as GitHub Markdown")
    parser.add_argument("--readme", action="store_true", help="fill the marked parts of READMEs")


def _add_report(parser: argparse.ArgumentParser) -> None:
    images = parser.add_mutually_exclusive_group()
    _add_dataset(images)
    images.add_argument(
        "--in-place",
        action="store_true",
        help="for committing: execute notebooks/ in place, on the images that they name",
    )
    _add_settings(parser, (f for f in settings() if f.name in ("size", "resplit")))
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of fine-tuning")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'a/*.jpg'"
    )
    parser.add_argument(
        "--run",
        help="folder below data/runs, or a backbone's name for its best run by validation "
        "(default: the network saved last)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes to print (default: 5)"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write every class's probability; - for standard output",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page of images, heat maps and probabilities"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a new folder to write to")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS)
    parser.add_argument("--run", help="as for predict")
