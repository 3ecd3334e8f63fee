"""Chapters executed once more by nbval, in processes beside the other tests, and compared with their first run."""

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from warm_pytest import OUTPUT

from fusionlib.press.process import kernel_environment

Run = tuple[int, int, str]


class SecondRuns:
    """Runs chapters again, one core being left to the tests until somebody asks for a result."""

    def __init__(self, executed: Path, home: Path, environment: dict[str, str], scratch: Path):
        """Nothing is run yet.

        Args:
            executed: the folder of the chapters that were executed first.
            home: the FUSIONLIB_HOME of that run; its fine-tunes are used again, its records are not.
            environment: of the processes.
            scratch: a folder for what they need.
        """
        self._executed, self._home, self._scratch = executed, home, scratch
        self._environment = {**environment, **kernel_environment()}
        cores = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(cores)
        self._turn = threading.Semaphore(max(1, cores - 1))
        self._runs: dict[str, Future[Run]] = {}
        self._asked = False
        self._ended: dict[str, Future[int]] = {}
        self._writing = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm_pytest.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def begin(self, chapters: list[str]) -> None:
        """Start to run these chapters, in this order."""
        for chapter in chapters:
            self._runs[chapter] = self._pool.submit(self._again, chapter)

    def result(self, chapter: str) -> Run:
        """How many code cells the second run has, its exit status and what it printed; waits for it."""
        if not self._asked:
            self._asked = True
            self._turn.release()
        return self._runs[chapter].result()

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        self._pool.shutdown(cancel_futures=True)
        self._server.stdin.close()
        self._listener.join()
        self._server.wait()
        self._server.stdout.close()

    def _listen(self) -> None:
        for line in self._server.stdout:
            answer = json.loads(line)
            self._ended[answer["id"]].set_result(answer["status"])
        for ended in self._ended.values():  # nobody is to wait for a server that is gone
            if not ended.done():
                ended.set_exception(RuntimeError("warm_pytest.py ended early; its last words are above"))

    def _again(self, chapter: str) -> Run:
        folder = self._scratch / chapter
        with self._turn:
            shutil.copytree(self._home / "checkpoints", folder / "home" / "checkpoints")
            executed = json.loads((self._executed / f"{chapter}.ipynb").read_text(encoding="utf-8"))
            notebook = comparable(executed)
            copy = folder / f"{Path(chapter).name}.ipynb"
            copy.write_text(json.dumps(notebook), encoding="utf-8")
            (folder / "pytest.ini").write_text("[pytest]\n")
            # drawings may differ in the ids inside them
            (folder / "sanitize").write_text("[svg]\nregex: (?s)<\\?xml.*</svg>\nreplace: FIGURE\n")
            arguments = ["--nbval", "--nbval-current-env", str(copy), "-q", "-p", "no:cacheprovider"]
            arguments += ["-c", str(folder / "pytest.ini"), "--nbval-sanitize-with", str(folder / "sanitize")]
            environment = {**self._environment, "FUSIONLIB_HOME": str(folder / "home")}
            order = {"id": chapter, "arguments": arguments, "environment": environment, "folder": str(folder)}
            self._ended[chapter] = Future()
            with self._writing:
                self._server.stdin.write(f"{json.dumps(order)}\n")
                self._server.stdin.flush()
            status = self._ended[chapter].result()
            cells = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
            return cells, status, (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")


def comparable(notebook: dict) -> dict:
    """The notebook without what may differ: the log of records that were read, and whatever names seconds."""
    quiet = "# NBVAL_IGNORE_OUTPUT\nimport logging\nlogging.disable(logging.INFO)"
    first = {
        "cell_type": "code",
        "id": "quiet",
        "metadata": {},
        "source": quiet,
        "outputs": [],
        "execution_count": None,
    }
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
            cell["source"] = assigned("".join(cell["source"]))
            if "seconds" in cell["source"]:
                cell["source"] = f"# NBVAL_IGNORE_OUTPUT\n{cell['source']}"
    return {**notebook, "cells": [first, *notebook["cells"]]}


def assigned(source: str) -> str:
    """A last line that ends in a semicolon, so as not to be shown, as an assignment: nbval overlooks semicolons."""
    if not source.rstrip().endswith(";"):
        return source
    lines = source.rstrip().removesuffix(";").splitlines()
    last = ast.parse(source).body[-1].lineno - 1
    return "\n".join([*lines[:last], f"_ = {lines[last]}", *lines[last + 1 :]])
