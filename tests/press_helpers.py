"""A checkout in miniature for the tests of the press: notebooks of a few lines that need neither torch nor a suite."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil

from fusionlib.press import pool
from fusionlib.press.project import Project

# what a tiny chapter does without; a process that does not import them starts in a third of the time
HEAVY = ("transformers", "peft", "datasets", "pandas", "matplotlib", "safetensors")
SOURCE = "the library may be edited while the tests run"
# the command `fusionlib`, for which the library never changes
COMMAND = [
    sys.executable,
    "-c",
    f"import sys; from fusionlib.press import cli, keys; keys.library = lambda: {SOURCE!r}; sys.exit(cli.main())",
]


def make_project(root: Path, **params: str) -> Project:
    """A project without chapters; params: name of a configuration -> its YAML, default ``one`` with ``scale: 1.0``."""
    for folder in ("book/methods", "book/results", "params"):
        (root / folder).mkdir(parents=True)
    (root / "_config.yml").touch()
    for name, text in (params or {"one": "scale: 1.0\n"}).items():
        (root / "params" / f"{name}.yaml").write_text(text)
    return Project(root)


def write_chapter(project: Project, name: str, *cells: str, parameters: str = "scale = 1.0", **restrictions) -> Path:
    """A chapter with a parameters cell and more code cells; restrictions go to the metadata ``fusionlib``."""
    sources = [(parameters, ["parameters"]), *((cell, []) for cell in cells)]
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "fusionlib": restrictions,
        },
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{index}",
                "metadata": {"tags": tags},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for index, (source, tags) in enumerate(sources)
        ],
    }
    path = project.book / f"{name}.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def printed(notebook: Path) -> str:
    """All that the cells of an executed notebook printed."""
    cells = json.loads(notebook.read_text())["cells"]
    return "".join(
        "".join(out["text"]) for c in cells if c["cell_type"] == "code" for out in c["outputs"] if "text" in out
    )


def light_environment(folder: Path) -> dict[str, str]:
    """An environment in which heavy packages cannot be imported; ``folder`` takes what stands in their place."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in HEAVY:
        (folder / f"{name}.py").write_text("raise ImportError('kept out of this test')\n")
    return {**os.environ, "PYTHONPATH": str(folder), "FUSIONLIB_HOME": str(folder / "home")}


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "what the test waits for did not happen"
        time.sleep(0.02)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants, taken down before some of them are orphaned."""
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; what has ended and waits for somebody to collect it does not."""
    running = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
        except psutil.NoSuchProcess:
            continue
    return running


class SharedPool:
    """Lends one pool to many runs, so that they need not wait for torch to be imported each time."""

    def __init__(self, root: Path):
        self._events = None
        self._running: set[int] = set()
        self._pool = pool.ForkPool(root, SimpleNamespace(put=self._put))
        assert self._pool.wait_until_ready() is None
        self.last_words, self.close = self._pool.last_words, self._pool.stop

    def open(self, root: Path, events: pool.Events) -> tuple["SharedPool", None]:
        """Stands in for ``open_pool``."""
        self._events = events
        return self, None

    def start(self, order: dict) -> None:
        self._running.add(order["id"])
        self._pool.start(order)

    def stop(self) -> None:
        """Wait until all processes of this run have ended by themselves."""
        wait_for(lambda: not self._running)

    def _put(self, event: dict) -> None:
        if event["event"] == "exit":
            self._running.discard(event["id"])
        self._events.put(event)
