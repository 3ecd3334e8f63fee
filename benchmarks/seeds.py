"""Every method on the embedded image suite over several seeds of fine-tuning: accuracy, seconds, memory.

Hyper-parameters are chosen on the validation split of the first seed and kept for the others. What was measured is
recorded, so an interrupted run goes on where it stopped, and the leaderboard shows the seeds too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import fusionlib as fl
from fusionlib import methods
from fusionlib.core import Record
from fusionlib.zoo.suite import Suite

CHOOSING = 200  # validation examples per task: enough to tell settings apart, and quicker than all
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)
# beyond the cards' grids: TIES with its sum, as the suite's recipe uses it; fewer steps than the papers' 500
OVER: dict[str, dict[str, tuple[Any, ...]]] = {
    "ties_merging": {"combine": ("sum",), "density": (0.2,), "scale": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)},
    "task_wise_adamerging": {"steps": (100,), "batch_size": (8,), "lr": (0.003, 0.01, 0.03)},
    "layer_wise_adamerging": {"steps": (100,), "batch_size": (8,), "lr": (0.003, 0.01, 0.03)},
    "we_moe": {"steps": (50,), "batch_size": (8,), "lr": (0.003, 0.01, 0.03)},
}


def by_need(suite: Suite) -> list[list[float]]:
    """Weights that follow how much a task loses in the simple average, more and more strongly."""
    own = fl.references(suite, split="val", limit=CHOOSING)[1].accuracy
    shared = fl.run("simple_average", suite, split="val", limit=CHOOSING).accuracy
    gaps = [max(own[task] - shared[task], 0.01) for task in suite.spec.tasks]
    return [[round(gap**strength, 4) for gap in gaps] for strength in STRENGTHS]


def choices(suite: Suite) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """(method, hyper-parameters, split they were chosen on): of every method its defaults or what was chosen."""
    for name in methods.names():
        over: dict[str, Any] = OVER.get(name) or dict(methods.get(name).card.grid)
        if name.startswith("weighted_"):
            over = {"weights": by_need(suite)}
        if over:
            yield name, fl.tune(name, suite, over=over, limit=CHOOSING), "val"
        else:
            yield name, {}, None


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", choices=("full", "lora"), default="full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    suites = [fl.load_suite(tuning=asked.tuning, seed=seed) for seed in asked.seeds]
    found: list[Record] = [record for suite in suites for record in fl.references(suite)]
    for name, given, selected_on in choices(suites[0]):
        found += [fl.run(name, suite, selected_on=selected_on, **given) for suite in suites]
        print(name, given, flush=True)
    print(fl.tables.by_task(found))
    print(f"\n{'method':24}{'seconds':>10}{'MB beyond inputs':>20}")
    for name in dict.fromkeys(record.method for record in found if record.fusion_seconds):
        own = [record for record in found if record.method == name]
        seconds = statistics.median(record.fusion_seconds for record in own)
        print(f"{name:24}{seconds:10.2f}{max(record.peak_memory or 0 for record in own) / 1e6:20.0f}")


if __name__ == "__main__":
    main()
