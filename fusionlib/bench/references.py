"""The bounds to compare with: the models that were there before anything was fused."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from fusionlib.bench.evaluate import Measurements, gather, measure_all, measure_task
from fusionlib.bench.questions import answer, question
from fusionlib.core import Record, StateDict
from fusionlib.ops.statedict import num_parameters
from fusionlib.zoo.suite import Suite


def references(suite: Suite, *, split: str = "test", limit: int | None = None) -> list[Record]:
    """The bounds to compare with: ``pretrained`` and, where the suite has them, ``finetuned`` and ``multitask``.

    ``finetuned`` asks each task's own model. Its stored parameters count tensors that no fine-tune changed once.
    """
    single = num_parameters(suite.backbone.weights)
    changed = sum(_num_changed(suite.pretrained, state) for state in suite.finetuned.values())

    def whole(state: StateDict) -> Callable[[], Measurements]:
        return lambda: measure_all(suite.model(state), suite, split, limit)

    def each_its_own() -> Measurements:
        own = suite.finetuned.items()
        return gather({task: measure_task(suite.model(w), suite, task, split, limit=limit) for task, w in own})

    asked: list[tuple[str, Callable[[], Measurements], int]] = [("pretrained", whole(suite.pretrained), single)]
    if suite.finetuned:
        asked.append(("finetuned", each_its_own, single + changed))
    if suite.multitask is not None:
        asked.append(("multitask", whole(suite.multitask), single))

    def reference(name: str, count: Callable[[], Measurements], stored: int) -> Record:
        def measure(asked_for: Record) -> Record:
            start = time.perf_counter()
            counts, metrics = count()
            return dataclasses.replace(
                asked_for,
                counts=counts,
                metrics=metrics,
                stored_parameters=stored,
                active_parameters=single,
                evaluation_seconds=time.perf_counter() - start,
            )

        return answer(question(name, suite, split, limit, None, {}), measure)[0]

    return [reference(*one) for one in asked]


def _num_changed(pretrained: StateDict, state: StateDict) -> int:
    changed = {key: value for key, value in state.items() if not torch.equal(value, pretrained[key])}
    return num_parameters(changed)
