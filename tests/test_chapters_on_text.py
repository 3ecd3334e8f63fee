"""The chapters of methods run on a suite of texts as they do on the default one of pictures."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import FUSIONLIB

from fusionlib import methods

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.book


@pytest.fixture(scope="module")
def executed(tmp_path_factory, smoke_environment):
    """The folder of the chapters, executed by one run of the grid; a run of ``smoke`` may have left the fine-tunes."""
    root = tmp_path_factory.mktemp("texts")
    for name in ("book/methods", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "_config.yml", root)
    command = [*FUSIONLIB, "run", "--params", "smoke-text", "--chapters", "methods/*"]
    done = subprocess.run(command, cwd=root, env=smoke_environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return root / "_build" / "executed" / "smoke-text" / "methods"


@pytest.mark.parametrize("chapter", methods.names())
def test_a_chapter_reads_texts(executed, chapter):
    cells = json.loads((executed / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [output for cell in cells for output in cell.get("outputs", [])]
    tables = ["".join(o["data"]["text/plain"]) for o in found if "text/html" in o.get("data", {})]
    assert any("reviews" in table and "question" in table for table in tables), "no table of the text tasks"
    assert any("image/svg+xml" in o.get("data", {}) for o in found), "no figure"
    assert [line for o in found for line in "".join(o.get("text", "")).splitlines() if "Warning" in line] == []
