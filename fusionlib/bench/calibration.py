"""From a suite to what a data-guided method may see of it."""

from __future__ import annotations

from fusionlib.core import Need
from fusionlib.ops.calibration import CalibrationData
from fusionlib.zoo.suite import Suite


def calibration(suite: Suite, allowed: frozenset[Need] = frozenset({"inputs"})) -> CalibrationData:
    """The suite's examples, heads and seed, behind a door that opens for ``allowed`` only."""
    sizes = {
        (task.name, split): task.num_examples(split)
        for task in suite.tasks
        for split in task.splits
        if split != "test" or "test-inputs" in allowed
    }
    return CalibrationData(suite.spec.tasks, sizes, suite.examples, suite.heads, allowed, suite.spec.seed)
