"""Every method on an embedded suite over several seeds of fine-tuning: accuracy, seconds, memory.

Hyper-parameters are chosen on the validation split of the first seed and kept for the others. What was measured is
recorded, so an interrupted run goes on where it stopped, and the leaderboard shows the seeds too.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import fusionlib as fl
from fusionlib import methods
from fusionlib.core import NotApplicable, Record
from fusionlib.zoo.suite import Suite

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


def tried(steps: int) -> dict[str, dict[str, tuple[Any, ...]]]:
    """What is tried beyond the cards' grids: TIES with its sum, as the image suite's recipe uses it, and few steps."""
    learned: dict[str, tuple[Any, ...]] = {"steps": (steps,), "batch_size": (8,), "lr": (0.003, 0.01, 0.03)}
    return {
        "ties_merging": {"combine": ("sum",), "density": (0.2,), "scale": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)},
        "task_wise_adamerging": learned,
        "layer_wise_adamerging": learned,
        "we_moe": {**learned, "steps": (max(1, steps // 2),)},
    }


def by_need(suite: Suite, choosing: int) -> list[list[float]]:
    """Weights that follow how much a task loses in the simple average, more and more strongly."""
    own = fl.references(suite, split="val", limit=choosing)[1].accuracy
    shared = fl.run("simple_average", suite, split="val", limit=choosing).accuracy
    gaps = [max(own[task] - shared[task], 0.01) for task in suite.spec.tasks]
    return [[round(gap**strength, 4) for gap in gaps] for strength in STRENGTHS]


def choose(name: str, suite: Suite, choosing: int, steps: int) -> tuple[dict[str, Any], str | None]:
    """Hyper-parameters of a method and the split they were chosen on: its defaults, or the best on validation."""
    over: dict[str, Any] = tried(steps).get(name) or dict(methods.get(name).card.grid)
    if name.startswith("weighted_"):
        over = {"weights": by_need(suite, choosing)}
    return (fl.tune(name, suite, over=over, limit=choosing), "val") if over else ({}, None)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-clip")
    parser.add_argument("--tasks", default="tiny8")
    parser.add_argument("--tuning", choices=("full", "lora"), default="full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="test examples per task; all if absent")
    parser.add_argument("--choosing", type=int, default=200, help="validation examples per task")
    parser.add_argument("--steps", type=int, default=100, help="of AdaMerging; WEMoE takes half")
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=methods.names())
    asked = parser.parse_args()
    suites = [fl.load_suite(asked.backbone, asked.tasks, tuning=asked.tuning, seed=seed) for seed in asked.seeds]
    found: list[Record] = [record for suite in suites for record in fl.references(suite, limit=asked.limit)]
    for name in asked.methods:
        try:
            given, on = choose(name, suites[0], asked.choosing, asked.steps)
            found += [fl.run(name, suite, selected_on=on, limit=asked.limit, **given) for suite in suites]
            print(name, given, flush=True)
        except NotApplicable as error:
            print(f"{name}: {error}", flush=True)
    print(fl.tables.by_task(found))
    if any(record.metrics for record in found):
        print(fl.tables.by_metric(found))
    print(f"\n{'method':24}{'seconds':>10}{'MB beyond inputs':>20}")
    for name in dict.fromkeys(record.method for record in found if record.fusion_seconds):
        own = [record for record in found if record.method == name]
        seconds = statistics.median(record.fusion_seconds for record in own)
        print(f"{name:24}{seconds:10.2f}{max(record.peak_memory or 0 for record in own) / 1e6:20.0f}")


if __name__ == "__main__":
    main()
