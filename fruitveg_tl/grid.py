"""Parallel runs on one or several machines, with Ray (the optional extra `grid`)."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fruitveg_tl.config import RunConfig, environment
from fruitveg_tl.data.dataset import Images
from fruitveg_tl.models.weights import SourceWeights
from fruitveg_tl.studies import Run, read_study
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.progress import progress

RETRIES = 2
Job = tuple[Images, SourceWeights, RunConfig]


def run_grid(jobs: Sequence[Job], workers: int, force: bool = False) -> list[Run]:
    """Run jobs (arguments of `run.train`) in parallel, with the same result folders as in sequence.

    If a worker dies, its run is retried and resumes. If RAY_ADDRESS is set, that cluster's size
    limits the parallel runs; its machines need the project at one path on a shared file system.
    Otherwise `workers` runs at a time share this machine's cores or graphics cards. `force` repeats
    finished runs. Returns the runs in the order of `jobs`. Raises InputError if Ray is missing, or,
    after all other runs, if runs failed: one line each.
    """
    try:
        import ray
    except ImportError:
        raise InputError("several workers need Ray: pip install 'fruitveg-tl[grid]'") from None
    if workers < 1:
        raise InputError(f"{workers} workers: at least one is needed")
    # No usage statistics; normal priority for workers.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    resources = {"num_cpus": max(1, (os.cpu_count() or 1) // workers)}
    # Otherwise every worker would use all cores.
    threads = {"TF_NUM_INTRAOP_THREADS": str(resources["num_cpus"]), "TF_NUM_INTEROP_THREADS": "1"}
    here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers * resources["num_cpus"]}
    ray.init(**here, runtime_env={"env_vars": environment() | threads})
    try:
        if cards := ray.cluster_resources().get("GPU"):
            resources["num_gpus"] = min(1, cards / workers)
        return _run_all(ray.remote(max_retries=0, **resources)(_one), jobs, force)
    finally:
        ray.shutdown()


def _run_all(one, jobs: Sequence[Job], force: bool) -> list[Run]:
    import ray

    # Most jobs share their images and their weights, which are large.
    parts = {id(part): part for images, source, _ in jobs for part in (images, source)}
    stored = {key: ray.put(part) for key, part in parts.items()}
    arguments = [
        (stored[id(images)], stored[id(source)], how, force) for images, source, how in jobs
    ]
    folders: dict[int, Path] = {}
    failed: list[str] = []
    waiting = {one.remote(*asked): (i, 0) for i, asked in enumerate(arguments)}
    with progress("runs", len(jobs)) as bar:
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            i, tries = waiting.pop(done)
            try:
                folders[i] = ray.get(done)
            except InputError as error:  # a retry would fail again
                failed.append(f"{_name(jobs[i])}: {error.cause}")
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                if tries == RETRIES:
                    failed.append(f"{_name(jobs[i])}: failed {tries + 1} times: {reason}")
                else:
                    print(f"WARNING: {_name(jobs[i])} is tried again: {reason}", file=sys.stderr)
                    waiting[one.remote(*arguments[i])] = i, tries + 1
                    continue
            bar.update()
    if failed:
        raise InputError("\n".join(failed))
    return [next(iter(read_study(folders[i]))) for i in range(len(jobs))]


def _one(images: Images, source: SourceWeights, config: RunConfig, force: bool) -> Path:
    from fruitveg_tl.run import train

    return train(images, source, config, force).folder


def _name(job: Job) -> str:
    images, _, config = job
    return f"{images.name}, {config.backbone}, {config.strategy}, seed {config.seed}"
