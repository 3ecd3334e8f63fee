"""The chapters of methods run on suites of other kinds as on the default one of pictures, or say why they do not."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import FUSIONLIB

from fusionlib import methods

ROOT = Path(__file__).parents[1]
# configuration -> methods that are not defined for its models or tasks
SKIPPED = {
    "smoke-text": set(),
    "smoke-t5": {"depth_upscaling"},
    "smoke-nyu": {
        "depth_upscaling",
        "fisher_merging",
        "layer_wise_adamerging",
        "max_model_predictor",
        "moe_merging",
        "moe_upscaling",
        "task_wise_adamerging",
        "we_moe",
    },
}
pytestmark = pytest.mark.book


@pytest.fixture(scope="module", params=SKIPPED)
def executed(request, tmp_path_factory, smoke_environment):
    """The folder of the chapters, executed by one run of the grid; a run of ``smoke`` may have left the fine-tunes."""
    root = tmp_path_factory.mktemp(request.param)
    for name in ("book/methods", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "_config.yml", root)
    command = [*FUSIONLIB, "run", "--params", request.param, "--chapters", "methods/*"]
    done = subprocess.run(command, cwd=root, env=smoke_environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return root / "_build" / "executed" / request.param / "methods"


@pytest.mark.parametrize("chapter", methods.names())
def test_a_chapter_reads_the_suite_or_is_skipped(executed, chapter):
    configuration = executed.parent.name
    status = json.loads((executed / f"{chapter}.json").read_text(encoding="utf-8"))["status"]
    assert status == ("skipped" if chapter in SKIPPED[configuration] else "done")
    if status == "skipped":
        return
    cells = json.loads((executed / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [output for cell in cells for output in cell.get("outputs", [])]
    tables = ["".join(o["data"]["text/plain"]) for o in found if "text/html" in o.get("data", {})]
    tasks = yaml.safe_load((ROOT / "params" / f"{configuration}.yaml").read_text(encoding="utf-8"))["tasks"]
    assert any(all(task in table for task in tasks) for table in tables), "no table of the suite's tasks"
    assert any("image/svg+xml" in o.get("data", {}) for o in found), "no figure"
    said = ["".join(o.get("text", "")) for o in found]
    assert [
        line for text in [*tables, *said] for line in text.splitlines() if re.search(r"\bnan\b|Warning", line)
    ] == []
