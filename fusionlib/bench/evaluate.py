"""Counting right answers, the one measurement from which every accuracy in the book is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fusionlib.bench import members
from fusionlib.bench.meters import DENSE, Count, ExactMatch, make_meter
from fusionlib.core import NotApplicable
from fusionlib.ops.modules import Ensemble, predict
from fusionlib.zoo.suite import Suite

CPU_BATCH, GPU_BATCH = 64, 256
Measurements = tuple[dict[str, Count], dict[str, dict[str, float]]]
"""Task -> count; task -> name -> what was measured besides, where there is something."""


def evaluate(
    model: nn.Module,
    suite: Suite,
    split: str = "test",
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
) -> dict[str, Count]:
    """How many examples of every task the model classifies correctly, under the head of each task.

    Args:
        model: a backbone or an ensemble, on the suite's device. It need not come from this suite: the tasks
            of another suite are unseen tasks.
        split: "train", "val" or "test".
        tasks: which tasks of the suite; None means all.
        limit: only the first examples of each task; None means all.
    Returns: task -> (correct, total), in the order of ``tasks``; where an example can be right in part (see
        ``Task.metric``), (sum of scores, total).
    Raises: UnknownName, if the suite has no such task; ParameterError, if one of them has no such split.
    """
    chosen = suite.spec.tasks if tasks is None else [suite.task(name).name for name in tasks]
    for task in chosen:
        suite.batches(task, split, limit=limit)  # nothing is read yet, but what is wrong with these is said
    return {task: evaluate_task(model, suite, task, split, limit=limit) for task in chosen}


def evaluate_task(model: nn.Module, suite: Suite, task: str, split: str = "test", *, limit: int | None = None) -> Count:
    """(correct, total) of one task."""
    return measure_task(model, suite, task, split, limit=limit)[0]


@torch.inference_mode()
def measure_task(
    model: nn.Module, suite: Suite, task: str, split: str = "test", *, limit: int | None = None
) -> tuple[Count, dict[str, float]]:
    """(correct, total) of one task, and what its meter measures besides.

    Collects on the device and waits for it once, except where a model is asked to answer in words.
    """
    model.eval()
    head, meter = suite.heads[task], make_meter(suite.task(task).metric)
    # on a CPU what a layer puts out must fit its cache; on a GPU larger batches are faster
    size = GPU_BATCH if suite.device.type == "cuda" else CPU_BATCH
    if isinstance(meter, ExactMatch):
        words = suite.backbone.words(head)
        for batch, labels in suite.batches(task, split, limit=limit, batch_size=size):
            scores, said = suite.backbone.answer(model, head, batch)
            meter.update(scores, labels)
            meter.hear(said, [words[label] for label in labels.tolist()])
        return meter.result()
    if isinstance(model, Ensemble):
        _check_classes(model, task, suite.task(task).metric)
        for features, batch, labels in members.outputs(model, suite, task, split, limit, size):
            meter.update(model.combine(head, features, batch), labels)
        return meter.result()
    for batch, labels in suite.batches(task, split, limit=limit, batch_size=size):
        meter.update(predict(model, head, batch), labels)
    return meter.result()


def measure_all(model: nn.Module, suite: Suite, split: str, limit: int | None) -> Measurements:
    """The counts of every task of the suite, and what their meters measure besides."""
    return gather({task: measure_task(model, suite, task, split, limit=limit) for task in suite.spec.tasks})


def gather(measured: Mapping[str, tuple[Count, dict[str, float]]]) -> Measurements:
    """Counts of every task, and the further measurements of those that have some."""
    more = {task: metrics for task, (_, metrics) in measured.items() if metrics}
    return {task: count for task, (count, _) in measured.items()}, more


def _check_classes(model: Ensemble, task: str, metric: str) -> None:
    """Refuses what would compare the places of a map as if they were classes."""
    if model.compares_classes and metric in DENSE:
        raise NotApplicable(
            f"task {task!r} asks for a {metric} at every pixel, and this ensemble compares scores of classes, which "
            'depths and normals have not. An ensemble with average="logits" takes the mean of what its members say.'
        )
