"""The command line: data, run, table, report, predict."""

import argparse
import os
import sys
from pathlib import Path

from fruitveg_tl.config import PATHS, PROFILES, RECIPE_OPTIONS, RunConfig
from fruitveg_tl.utils.errors import InputError, printable


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0; 2 for input that cannot be used or a file that cannot be written, with
        one line per problem on standard error; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{printable(error.filename)}: " if error.filename else ""
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        print(
            f"error: {where}{reason}; free space or correct the rights, then give the same "
            "command again: finished steps are kept",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the steps that are left", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fruitveg_tl",
        description="Transfer learning on images of fruit and vegetables.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="fetch or generate a dataset and describe it")
    _dataset_options(data)
    data.set_defaults(command=_data)

    run = commands.add_parser(
        "run",
        help="train and evaluate networks; finished runs are kept",
        description="Train and evaluate networks. A killed run goes on where it was when the same "
        "command is given again; a finished one is not repeated.",
    )
    _dataset_options(run)
    run.add_argument(
        "--backbones", nargs="+", default=["vgg16", "resnet50", "mobilenetv2"], metavar="NAME"
    )
    run.add_argument("--strategy", default="transfer", help="transfer (default) or scratch")
    run.add_argument(
        "--weights",
        help="auto (default: FRUITVEG_WEIGHTS, Keras' cache, Keras' download, the bundled ones), "
        "bundled, random, or a file",
    )
    run.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    for name, kind, what in (
        ("size", int, "side of the images in pixels"),
        ("crop", float, "fraction of each side kept around the centre, e.g. 0.875"),
        ("views", int, "cached augmented views of each training image"),
        ("probe-epochs", int, "the most epochs of the linear probe"),
        ("finetune-epochs", int, "the most epochs of fine-tuning, or of training from scratch"),
        ("soup", int, "fine-tune so many times and average the weights"),
        ("logit_adjustment", float, "0 to 1: how far the loss makes up for rare classes"),
    ):
        run.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=what)
    run.add_argument("--force", action="store_true", help="repeat finished runs")
    several = run.add_mutually_exclusive_group()
    several.add_argument(
        "--workers", type=int, metavar="N", help="so many runs at a time, through Ray"
    )
    several.add_argument(
        "--devices", type=int, default=1, metavar="N", help="spread every batch over N devices"
    )
    run.set_defaults(command=_run)

    table = commands.add_parser("table", help="print the table of evaluated models")
    table.add_argument("--markdown", action="store_true", help="as GitHub Markdown")
    table.add_argument("--readme", action="store_true", help="fill the marked parts of README.md")
    table.set_defaults(command=_table)

    report = commands.add_parser(
        "report",
        help="execute the notebooks and bind them into a PDF and an HTML file",
        description="Execute the notebooks in order, for the images that FRUITVEG_DATASET "
        "names or else the notebooks themselves, and bind them into report/report.pdf and .html. "
        "Finished runs are used, missing ones computed.",
    )
    report.add_argument(
        "--in-place", action="store_true", help="store the executed notebooks in notebooks/"
    )
    report.set_defaults(command=_report)

    predict = commands.add_parser("predict", help="classify images with a saved network")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument(
        "--run", type=Path, help="folder below data/results (default: the newest network)"
    )
    predict.set_defaults(command=_predict)
    return parser


def _dataset_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        default=os.environ.get("FRUITVEG_DATASET", "synthetic"),
        help="synthetic (default, generated), grocery, fruits-veges, or a folder of class folders",
    )
    parser.add_argument(
        "--label-level", default="coarse", help="coarse (default) or fine, for grocery only"
    )
    parser.add_argument("--data", help="a copy of the dataset on disk (default: FRUITVEG_DATA)")


# The heavy imports stand inside the commands, so that --help answers at once.


def _data(options: argparse.Namespace) -> None:
    from fruitveg_tl.data import registry

    dataset = registry.load(options.dataset, options.label_level, options.data)
    counts = dataset.index.groupby(["label", "split"]).size().unstack()
    print(counts[list(dataset.split_sizes())].to_string())
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.split_sizes().items())
    print(f"\n{dataset.name}: {len(dataset.classes)} classes; {sizes}")
    print(f"folder {dataset.root}\nSHA-256 {dataset.digest}")


def _run(options: argparse.Namespace) -> None:
    from fruitveg_tl import grid, results
    from fruitveg_tl.models import backbones
    from fruitveg_tl.run import train_and_evaluate

    given = ("weights", "size", "views", "probe_epochs", "finetune_epochs", *RECIPE_OPTIONS)
    settings = PROFILES.get(options.dataset, {}) | {
        name: value for name in given if (value := getattr(options, name)) is not None
    }
    names = [backbones.backbone_by_name(name) for name in options.backbones]
    configs = [
        RunConfig(
            options.dataset,
            backbone.key,
            options.label_level,
            options.strategy,
            seed=seed,
            **settings,
        )
        for backbone in names
        for seed in options.seeds
    ]
    if options.workers:
        folders = grid.run_grid(configs, options.workers, options.data, options.force)
    else:
        folders = []
        for config in configs:
            run = train_and_evaluate(config, options.data, options.force, devices=options.devices)
            folders.append(run)
            print(run)
    runs = results.read()
    chosen = runs[runs["run"].isin([folder.name for folder in folders])]
    print(results.table(chosen).to_string(index=False))


def _table(options: argparse.Namespace) -> None:
    from fruitveg_tl import results

    runs = results.read()
    if not len(runs):
        raise InputError("no finished run yet; start one with «python -m fruitveg_tl run»")
    if options.readme:
        readme = PATHS.root / "README.md"
        readme.write_text(results.fill(readme.read_text(), runs))
        return
    table = results.table(runs)
    print(results.markdown(table) if options.markdown else table.to_string(index=False))


def _report(options: argparse.Namespace) -> None:
    from fruitveg_tl.reporting import report

    for file in report.report(PATHS.report, options.in_place):
        print(file)


def _predict(options: argparse.Namespace) -> None:
    from fruitveg_tl.predict import newest_run, predict

    run = options.run or newest_run()
    for path, found in zip(options.images, predict(options.images, run), strict=True):
        best = ", ".join(f"{name} {value:.1%}" for name, value in found.head(5).items())
        print(f"{path}: {best}")
