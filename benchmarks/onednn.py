"""Where a training step's time goes, by oneDNN's own log of what it executed.

ONEDNN_VERBOSE=profile_exec prints every operation with its time: TensorFlow on a processor alone.
TensorFlow runs independent operations of the backward pass side by side, so that their times can
add up to more than the clock shows.
"""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from harness import measure, save, start

ROUNDS = 5


def steps(backbone: str) -> None:
    """Train on one batch some times, between two lines that tell the log's reader where."""
    from networks import training_step, usual_precision

    call, _ = training_step(backbone, usual_precision(backbone))
    call()
    print("begin", flush=True)
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    print("end", time.perf_counter() - begin, flush=True)


def profile(backbone: str) -> dict[str, str]:
    """Run `steps` in one more process and add up its log."""
    from networks import usual_precision

    done = subprocess.run(
        [sys.executable, __file__, "--steps", backbone],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    log = lines[lines.index("begin") + 1 :]
    end = next(number for number, line in enumerate(log) if line.startswith("end "))
    spent: Counter[str] = Counter()
    for line in log[:end]:
        if match := re.match(r"onednn_verbose(?:,v\d)?(?:,[\d.]+)?(?:,primitive)?,exec,", line):
            fields = line[match.end() :].split(",")
            kind = fields[1]
            if kind == "convolution" and re.search(r"\bg\d+", fields[-2]):
                kind = "depthwise convolution"
            kind += " backwards" if fields[3].startswith("backward") else ""
            spent[kind] += float(fields[-1]) / 1000
    total, whole = sum(spent.values()), float(log[end].split()[1])
    return {
        "Backbone": backbone,
        "Precision": usual_precision(backbone),
        "In oneDNN, of the time by the clock": f"{total / whole:.0%}",
        "Of that": ", ".join(f"{kind} {part / total:.0%}" for kind, part in spent.most_common(4)),
    }


def main() -> None:
    """Measure the backbones one after the other and store the table."""
    from fruitveg_tl.models.backbones import BACKBONES

    verbose = {"ONEDNN_VERBOSE": "profile_exec"}
    save(Path(__file__).stem, [measure(profile, name, **verbose)["found"] for name in BACKBONES])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--steps"]:
        steps(sys.argv[2])
    else:
        start(main, profile)
