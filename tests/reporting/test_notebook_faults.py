"""Notebooks whose kernel dies, or whose cells are run in the wrong order."""

import time

import nbformat
import pytest
from conftest import process_environment
from jupyter_client.manager import start_new_kernel

CHAPTER = "03_resnet50.ipynb"
PATIENCE = 300  # seconds for one cell


class Kernel:
    """A kernel with the miniature's environment, and what its cells answered."""

    def __init__(self, miniature):
        home, environment = miniature
        self.manager, self.client = start_new_kernel(
            env=process_environment(home, **environment), cwd=str(home / "notebooks")
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)  # SIGKILL

    def run(self, source: str) -> tuple[str | None, list[dict]]:
        """Run a cell: the error's name and text, and the Markdown that was shown."""
        shown = []

        def collect(message):
            data = message["content"].get("data", {})
            if "text/markdown" in data:
                shown.append(data["text/markdown"])

        reply = self.client.execute_interactive(source, output_hook=collect, timeout=PATIENCE)
        content = reply["content"]
        failed = content["status"] == "error"
        return f"{content['ename']}: {content['evalue']}" if failed else None, shown


def sources(miniature) -> list[str]:
    cells = nbformat.read(miniature[0] / "notebooks" / CHAPTER, 4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def in_order(miniature) -> list[list[str]]:
    with Kernel(miniature) as kernel:
        answers = [kernel.run(source) for source in sources(miniature)]
    assert [error for error, _ in answers] == [None] * len(answers)
    return [shown for _, shown in answers]


@pytest.mark.reliability("notebook kernels killed, cells out of order")
def test_a_killed_kernel_costs_nothing_and_wrong_order_no_wrong_number(miniature, tried):
    home, cells = miniature[0], sources(miniature)
    for number, call in enumerate(("head.fit(", "fast.fit(")):
        training = next(i for i, source in enumerate(cells) if call in source)
        with Kernel(miniature) as kernel:
            for source in cells[:training]:
                kernel.run(source)
            kernel.client.execute(cells[training])
            while len(list(home.glob("data/cache/fits/*/history.json"))) <= number:
                time.sleep(0.01)
    assert not list((home / "data" / "runs").glob("*/runs.csv"))
    right = in_order(miniature)

    # From the last cell to the first: what needs an earlier cell says so, the rest is right.
    with Kernel(miniature) as kernel:
        for source, expected in list(zip(cells, right, strict=True))[::-1]:
            error, shown = kernel.run(source)
            if error:
                assert error.startswith("NameError: name '")
            else:
                assert shown == expected
    tried(2 + len(cells))
