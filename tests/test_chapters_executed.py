"""Every chapter runs from its first cell to its last, by ``fusionlib run``, by papermill, and again with nbval."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHAPTERS, MEASURING

from fusionlib.press.process import kernel_environment

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("chapter", MEASURING)
def test_another_run_gives_the_same_numbers(second_runs, chapter):
    """nbval executes the chapter again, measures anew, and compares every table and number."""
    cells, status, printed = second_runs.result(chapter)
    assert status == 0, printed[-5000:]
    assert f"{cells} passed" in printed


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
    given = {**environment, **kernel_environment()}  # one thread: the second runs have the other core
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)


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
