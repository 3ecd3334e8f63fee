"""The chapters of methods run on suites of other kinds as on the default one of pictures, or say why they do not."""

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import OTHERS

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


@pytest.mark.parametrize("chapter", methods.names())
@pytest.mark.parametrize("configuration", OTHERS)
def test_a_chapter_reads_the_suite_or_is_skipped(smoke_project, configuration, chapter):
    executed = smoke_project / "_build" / "executed" / configuration / "methods"
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
