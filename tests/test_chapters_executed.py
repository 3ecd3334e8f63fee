"""Every chapter runs from its first cell to its last, by ``fusionlib run``, by papermill, and again with nbval."""

import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.relative_to(ROOT / "book").with_suffix("").as_posix() for path in ROOT.glob("book/**/*.ipynb"))
MEASURING = [name for name in CHAPTERS if name.startswith(("methods/", "suites/"))]
pytestmark = pytest.mark.book


def outputs(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs(smoke_project, chapter):
    executed = smoke_project / "_build" / "executed" / "smoke" / f"{chapter}.ipynb"
    found = outputs(executed)
    assert [o["ename"] for o in found if o["output_type"] == "error"] == []
    assert any("text/html" in o.get("data", {}) for o in found), "no table"
    assert any("image/svg+xml" in o.get("data", {}) for o in found), "no figure"
    warned = [line for o in found for line in "".join(o.get("text", "")).splitlines() if "Warning" in line]
    assert warned == []


def test_nothing_runs_twice(smoke_project, smoke_environment):
    command = [sys.executable, "-m", "fusionlib.press.cli", "run", "--params", "smoke"]
    done = subprocess.run(command, cwd=smoke_project, env=smoke_environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(CHAPTERS)} of {len(CHAPTERS)} up to date" in done.stdout


@pytest.fixture(scope="module")
def second_runs(smoke_project, smoke_home, smoke_environment, tmp_path_factory):
    """Chapter -> its second run, with the same fine-tunes and no records; as many at once as there are cores."""

    def again(chapter: str) -> tuple[Path, subprocess.CompletedProcess]:
        folder = tmp_path_factory.mktemp("again")
        shutil.copytree(smoke_home / "checkpoints", folder / "home" / "checkpoints")
        executed = smoke_project / "_build" / "executed" / "smoke" / f"{chapter}.ipynb"
        copy = folder / executed.name
        copy.write_text(json.dumps(comparable(json.loads(executed.read_text(encoding="utf-8")))), encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n")
        # drawings may differ in the ids inside them
        (folder / "sanitize").write_text("[svg]\nregex: (?s)<\\?xml.*</svg>\nreplace: FIGURE\n")
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", str(copy), "-q"]
        command += ["-p", "no:cacheprovider", "-c", str(folder / "pytest.ini")]
        command += ["--nbval-sanitize-with", str(folder / "sanitize")]
        environment = {**smoke_environment, "FUSIONLIB_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        return copy, subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {chapter: pool.submit(again, chapter) for chapter in MEASURING}


@pytest.mark.parametrize("chapter", MEASURING)
def test_another_run_gives_the_same_numbers(second_runs, chapter):
    """nbval executes the chapter again, measures anew, and compares every table and number."""
    copy, done = second_runs[chapter].result()
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"{sum(c['cell_type'] == 'code' for c in json.loads(copy.read_text())['cells'])} passed" in done.stdout


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


def papermill(chapter: str, out: Path, environment: dict, *options: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "papermill",
        f"book/{chapter}.ipynb",
        str(out),
        "-f",
        "params/smoke.yaml",
        *options,
    ]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_plain_papermill(smoke_project, smoke_environment, tmp_path):
    out = tmp_path / "out.ipynb"
    done = papermill("methods/ties_merging", out, smoke_environment, "-p", "scale", "0.4")
    assert done.returncode == 0, done.stderr[-3000:]
    tables = ["".join(o["data"]["text/plain"]) for o in outputs(out) if "text/html" in o.get("data", {})]
    assert any("scale 0.4" in table for table in tables)


def test_plain_papermill_refuses_a_misspelt_parameter(smoke_project, smoke_environment, tmp_path):
    done = papermill("methods/ties_merging", tmp_path / "out.ipynb", smoke_environment, "-p", "scal", "0.4")
    assert done.returncode != 0
    assert "this chapter has no parameter 'scal'. Did you mean 'scale'?" in done.stderr
