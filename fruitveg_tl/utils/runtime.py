"""The machine and the software of a run."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from fruitveg_tl.utils.backend import keras

LIBRARIES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "numpy", "pillow", "scikit-learn")


ROOT = Path(__file__).parents[2]  # of the checkout


def make_deterministic(seed: int) -> None:
    """Seed Python, NumPy and the backend, and enable TensorFlow's deterministic operations."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def fast_precision(gains_on_cpu: bool) -> str:
    """Return the faster precision here; `gains_on_cpu`: bfloat16 is faster on a CPU that has it."""
    # XLA on a processor is no faster in bfloat16 (benchmarks/share_of_peak.py).
    able = keras.backend.backend() != "jax" and "avx512_bf16" in _cpuinfo("flags").split()
    return "mixed_bfloat16" if gpus() or (able and gains_on_cpu) else "float32"


def gpus() -> list[str]:
    """Return the names of the backend's accelerators; empty on a CPU."""
    if keras.backend.backend() == "torch":  # Keras does not list them for torch
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [name for name in keras.distribution.list_devices() if not name.startswith("cpu")]


def environment() -> dict:
    """Return versions, backend, hardware and commit, as plain values for JSON."""
    return {
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "cpu": _cpuinfo("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "gpus": gpus(),
        "commit": commit(),
    }


def origin() -> dict[str, str]:
    """Return the commit, the backend and the graphics cards."""
    return {
        "commit": commit(),
        "backend": keras.backend.backend(),
        "graphics card": ", ".join(gpus()) or "none",
    }


def commit() -> str:
    """Return the project's Git commit, with "+changes" if the package's code differs from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "fruitveg_tl") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def changed(folder: Path) -> str:
    """Return the names of a folder's files that differ from the commit; empty if there are none."""
    try:
        lines = _git("status", "--porcelain", "--untracked-files=no", str(folder)).splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ", ".join(Path(line.split()[-1].strip('"')).name for line in lines)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(field: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
