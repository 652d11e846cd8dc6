"""The command line: data, run, table, report, predict, export, clean."""

import argparse
import errno
import os
import sys
from collections.abc import Iterable
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fruitveg_tl import __version__, config
from fruitveg_tl.config import PATHS, PROFILES, RunConfig
from fruitveg_tl.models.backbones import BACKBONES, backbone_by_name
from fruitveg_tl.utils.errors import InputError, printable

if TYPE_CHECKING:
    from fruitveg_tl.data.dataset import Dataset

# The heavy imports stand inside the commands, so that --help comes at once.


EXPORT_FORMATS = ("onnx", "litert", "saved_model", "openvino")  # of fruitveg_tl.export
_WAYS_OUT = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space") | {
    errno.EACCES: "correct the rights",
    errno.EPERM: "correct the rights",
    errno.EROFS: "choose a disk that can be written (FRUITVEG_HOME)",
    errno.ENAMETOOLONG: "shorten the name",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0; 2 for input that cannot be used or a file that cannot be written, with
        one line per problem on standard error; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        config.refuse_unknown_variables()
        options.command(options)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at the end
        return 0
    except OSError as error:
        where = f"{printable(error.filename)}: " if error.filename else ""
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        way_out = _WAYS_OUT.get(error.errno, "correct that")
        print(
            f"error: {where}{reason}; {way_out}, then give the same command again: finished steps "
            "are kept",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the steps that are left", file=sys.stderr)
        return 130
    return 0


# --- options ------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fruitveg_tl",
        description="Transfer learning on images of fruit and vegetables.",
    )
    parser.add_argument("--version", action="version", version=f"fruitveg-tl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands.add_parser("data", help="fetch or generate a data set and describe it"))
    _add_run(
        commands.add_parser(
            "run",
            help="train and evaluate networks; finished runs are kept",
            description="Train and evaluate networks. A killed run goes on where it was when the "
            "same command is given again; a finished one is not repeated.",
        )
    )
    _add_table(commands.add_parser("table", help="print the table of evaluated models"))
    _add_report(
        commands.add_parser(
            "report",
            help="execute the notebooks and bind them into a PDF and an HTML file",
            description="Execute the notebooks in order, on the images that FRUITVEG_DATASET or "
            "else the notebooks name, and bind them into report/report.pdf and .html. Finished "
            "runs are used, missing ones computed.",
        )
    )
    _add_predict(commands.add_parser("predict", help="classify images with a saved network"))
    _add_export(commands.add_parser("export", help="write a saved network in another format"))
    clean = commands.add_parser(
        "clean", help="free the disk that decoded images and activations take; results stay"
    )
    clean.set_defaults(command=_clean)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        default=config.variable("DATASET") or "synthetic",
        help="synthetic, grocery, grocery-all, fruits-veges, or a folder of class folders "
        "(default: FRUITVEG_DATASET, else synthetic)",
    )
    parser.add_argument("--data", help="a copy of the data set on disk (default: FRUITVEG_DATA)")
    _add_settings(parser, (f for f in config.settings() if f.name in ("label_level", "resplit")))
    parser.set_defaults(command=_data)


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
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--workers", type=int, metavar="N", help="so many runs at a time, through Ray"
    )
    several.add_argument(
        "--devices", type=int, default=1, metavar="N", help="spread every batch over N devices"
    )
    own = ("dataset", "backbone", "seed", "label_level", "resplit")  # their options stand above
    usual = (f for f in config.settings(config.PLAIN, config.OPTION) if f.name not in own)
    _add_settings(parser.add_argument_group("settings"), usual)
    ablations = parser.add_argument_group("ablations, which every table names")
    _add_settings(ablations, (f for f in config.settings(config.ABLATION) if f.name not in own))
    parser.set_defaults(command=_run)


def _add_settings(parser: Any, fields: Iterable[Field]) -> None:
    """Make an option of each field; its default stays None, so that a profile may set it."""
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
    parser.add_argument("--readme", action="store_true", help="fill the marked parts of README.md")
    parser.set_defaults(command=_table)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--in-place", action="store_true", help="store the executed notebooks in notebooks/"
    )
    parser.set_defaults(command=_report)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'a/*.jpg'"
    )
    parser.add_argument(
        "--run",
        help="folder below data/results, or a backbone's name for its best run by validation "
        "(default: the network saved last)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes to print (default: 5)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every class's probability")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page of images, heat maps and probabilities"
    )
    parser.set_defaults(command=_predict)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a new folder to write to")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS)
    parser.add_argument("--run", help="as for predict")
    parser.set_defaults(command=_export)


# --- commands -----------------------------------------------------------------------------------


def _data(options: argparse.Namespace) -> None:
    dataset = _load(options)
    counts = dataset.index.groupby(["label", "split"]).size().unstack()
    print(counts[list(dataset.split_sizes())].to_string())
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.split_sizes().items())
    print(f"\n{dataset.name}: {len(dataset.classes)} classes; {sizes}")
    print(f"folder {dataset.root}\nSHA-256 {dataset.digest}")


def _load(options: argparse.Namespace) -> "Dataset":
    """Load the images that the options name, and warn of what stands among them twice."""
    from fruitveg_tl.data import audit, registry

    fold = options.resplit or 0
    dataset = registry.load(options.dataset, options.label_level, options.data, fold)
    if leaks := audit.exact_leaks(dataset):
        print(f"WARNING: {leaks}", file=sys.stderr)
    return dataset


def _run(options: argparse.Namespace) -> None:
    configs = [
        RunConfig(options.dataset, backbone_by_name(name).key, seed=seed, **_given(options))
        for name in options.backbones
        for seed in options.seeds
    ]
    _load(options)
    from fruitveg_tl import grid, results, run
    from fruitveg_tl.reporting import tables

    if options.workers is not None:
        folders = grid.run_grid(configs, options.workers, options.data, options.force)
    else:
        folders = []
        for settings in configs:
            folders.append(
                run.train_and_evaluate(
                    settings, options.data, options.force, devices=options.devices
                )
            )
            print(folders[-1])
    runs = results.read()
    chosen = runs[runs["run"].isin([folder.name for folder in folders])]
    print(tables.evaluated_models(chosen).to_string(index=False))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were asked for, over those of the data set's profile."""
    names = [f.name for f in config.settings() if f.name not in ("dataset", "backbone", "seed")]
    asked = {name: getattr(options, name) for name in names}
    profile = PROFILES.get(options.dataset, {})
    return profile | {name: value for name, value in asked.items() if value is not None}


def _table(options: argparse.Namespace) -> None:
    from fruitveg_tl import results
    from fruitveg_tl.reporting import tables

    runs = results.read()
    if not len(runs):
        raise InputError("no finished run yet; start one with «python -m fruitveg_tl run»")
    if options.readme:
        readme = PATHS.root / "README.md"
        readme.write_text(tables.fill(readme.read_text(), runs))
        return
    table = tables.evaluated_models(runs)
    print(tables.markdown(table) if options.markdown else table.to_string(index=False))


def _report(options: argparse.Namespace) -> None:
    from fruitveg_tl.reporting import report

    for file in report.report(PATHS.report, options.in_place):
        print(file)


def _predict(options: argparse.Namespace) -> None:
    from fruitveg_tl.predict import choose_run, find_images, predict
    from fruitveg_tl.reporting import predictions

    if options.top < 1:
        raise InputError(f"--top {options.top}: at least 1")
    files, problems = find_images(options.images)
    run = choose_run(options.run)
    print(f"answered by {predictions.source(run)}", file=sys.stderr)
    answers = []
    try:
        for path, probabilities in predict(files, run) if files else ():
            answers.append((path, probabilities))
            top = probabilities.head(options.top)
            best = ", ".join(f"{printable(name)} {value:.1%}" for name, value in top.items())
            print(f"{printable(path)}: {best}")
    except InputError as error:
        problems.append(str(error))
    if options.csv:
        predictions.write_csv(options.csv, answers)
    if options.json:
        predictions.write_json(options.json, answers, run)
    if options.html:
        from fruitveg_tl.reporting.prediction_page import write_page

        write_page(options.html, answers, run)
    if problems:
        raise InputError("\n".join(problems))


def _export(options: argparse.Namespace) -> None:
    from fruitveg_tl.export import export
    from fruitveg_tl.predict import choose_run

    run = choose_run(options.run)
    file, difference = export(run, options.format, options.folder)
    print(f"{run.folder.name}: {file}; probabilities differ by at most {difference:.1e}")


def _clean(options: argparse.Namespace) -> None:
    from fruitveg_tl.utils.storage import remove

    freed = sum(remove(PATHS.cache / name) for name in ("pixels", "activations"))
    print(f"{freed / 1e6:,.1f} MB freed below {PATHS.cache}")
