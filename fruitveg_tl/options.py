"""The options of the command line: every setting's default, choices and help come from `config`."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import Field
from pathlib import Path
from typing import Any

from fruitveg_tl import __version__, config
from fruitveg_tl.config import PROFILES
from fruitveg_tl.models.backbones import BACKBONES

EXPORT_FORMATS = ("onnx", "litert", "saved_model", "openvino")  # of fruitveg_tl.export


def parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses names its `command`."""
    whole = _Parser(
        prog="python -m fruitveg_tl",
        description="Transfer learning on images of fruit and vegetables.",
    )
    whole.add_argument("--version", action="version", version=f"fruitveg-tl {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
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
            description="Execute the notebooks in order and bind them into report/live.pdf and "
            ".html; the committed ones become report/study.pdf and .html. Finished runs are not "
            "computed again.",
        )
    )
    _add_predict(commands.add_parser("predict", help="classify images with a saved network"))
    _add_export(commands.add_parser("export", help="write a saved network in another format"))
    study = commands.add_parser(
        "study",
        help="for the project's authors: put the runs of this machine into data/results",
        description="Replaces the rows of the committed studies by the runs below data/runs that "
        "were trained alike, and adds others on the same images. It says what it writes before.",
    )
    study.set_defaults(command="study")
    clean = commands.add_parser(
        "clean", help="free the disk that decoded images and activations take; results stay"
    )
    clean.set_defaults(command="clean")
    return whole


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; of an unknown option, which others have its word."""

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
        default=config.variable("DATASET") or config.SYNTHETIC,
        help="synthetic, grocery, grocery-all, fruits-veges, or a folder of class folders "
        "(default: FRUITVEG_DATASET, else synthetic)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("--data", help="a copy of the data set on disk (default: FRUITVEG_DATA)")
    _add_settings(parser, (f for f in config.settings() if f.name in ("label_level", "resplit")))
    parser.set_defaults(command="data")


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
    own = ("dataset", "backbone", "seed", "label_level", "resplit")  # their options stand above
    usual = (f for f in config.settings(ablations=False) if f.name not in own)
    _add_settings(parser.add_argument_group("settings"), usual)
    ablations = parser.add_argument_group("ablations, which every table names")
    _add_settings(ablations, (f for f in config.settings(ablations=True) if f.name not in own))
    parser.set_defaults(command="run")


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
    parser.add_argument("--readme", action="store_true", help="fill the marked parts of READMEs")
    parser.set_defaults(command="table")


def _add_report(parser: argparse.ArgumentParser) -> None:
    images = parser.add_mutually_exclusive_group()
    _add_dataset(images)
    images.add_argument(
        "--in-place",
        action="store_true",
        help="for committing: on the images that the notebooks name, and stored in notebooks/",
    )
    _add_settings(parser, (f for f in config.settings() if f.name in ("size", "resplit")))
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of fine-tuning")
    parser.set_defaults(command="report")


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
    parser.set_defaults(command="predict")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a new folder to write to")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS)
    parser.add_argument("--run", help="as for predict")
    parser.set_defaults(command="export")
