"""The command line: data, run, table, report, predict, export, study, clean."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fruitveg_tl import config
from fruitveg_tl.config import PATHS, PROFILES, RunConfig, Selection
from fruitveg_tl.models.backbones import backbone_by_name
from fruitveg_tl.options import parser
from fruitveg_tl.utils.errors import STOPPED, InputError, printable
from fruitveg_tl.utils.storage import STDOUT, new_file, remove

if TYPE_CHECKING:
    from fruitveg_tl.data.dataset import Images

# The heavy imports stand inside the commands, so that --help comes at once.


_WAYS_OUT = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space") | {
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
    options = parser().parse_args(arguments)
    try:
        config.refuse_unknown_variables()
        _commands()[options.command](options)
        sys.stdout.flush()
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at the end
        return 0
    except OSError as error:
        sys.unraisablehook = lambda _: None  # HDF5 says once more that it cannot close its file
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


def _commands() -> dict[str, Callable[[argparse.Namespace], None]]:
    return {
        "data": _data,
        "run": _run,
        "table": _table,
        "report": _report,
        "predict": _predict,
        "export": _export,
        "study": _study,
        "clean": _clean,
    }


def _data(options: argparse.Namespace) -> None:
    dataset = _load(options)
    counts = dataset.index.groupby(["label", "split"]).size().unstack()
    print(counts[list(dataset.split_sizes())].to_string())
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.split_sizes().items())
    print(f"\n{dataset.name}: {len(dataset.classes)} classes; {sizes}")
    print(f"folder {dataset.root}\nSHA-256 {dataset.digest}")


def _load(options: argparse.Namespace) -> "Images":
    """Load the images that the options name, and warn of what makes scores doubtful."""
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
    """Return what `run`'s options ask for, over the data set's profile.

    Raises:
        InputError: naming the backbone that is unknown, or the setting that makes no sense.
    """
    names = [f.name for f in config.settings() if f.name not in ("dataset", "backbone", "seed")]
    asked = {name: getattr(options, name) for name in names}
    profile = PROFILES.get(options.dataset, {})
    given = profile | {name: value for name, value in asked.items() if value is not None}
    which, how = config.divided(given)
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
        "dataset": registry.located(options.dataset),  # kernels may work elsewhere
        "size": options.size,
        "epochs": options.epochs,
        "resplit": options.resplit or 0,
    }
    for file in report.report(PATHS.report, None if options.in_place else parameters):
        print(file)


def _predict(options: argparse.Namespace) -> None:
    from fruitveg_tl.predict import choose_run, find_images, predict
    from fruitveg_tl.reporting import predictions

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
    try:
        for path, probabilities in predict(files, run) if files else ():
            answers.append((path, probabilities))
            top = probabilities.head(options.top)
            best = ", ".join(f"{printable(name)} {value:.1%}" for name, value in top.items())
            print(f"{printable(path)}: {best}", file=shown)
    except InputError as error:
        problems.append(str(error))
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
    from fruitveg_tl.predict import choose_run

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
