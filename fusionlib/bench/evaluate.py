"""Counting right answers, the one measurement from which every accuracy in the book is made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fusionlib.ops.modules import predict
from fusionlib.zoo.suite import Suite

BATCH_SIZE = 256


def evaluate(
    model: nn.Module,
    suite: Suite,
    split: str = "test",
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
) -> dict[str, tuple[int, int]]:
    """How many examples of every task the model classifies correctly, under the head of each task.

    Args:
        model: a backbone or an ensemble, on the suite's device. It need not come from this suite: the tasks
            of another suite are unseen tasks.
        split: "train", "val" or "test".
        tasks: which tasks of the suite; None means all.
        limit: only the first examples of each task; None means all.
    Returns: task -> (correct, total), in the order of ``tasks``.
    Raises: UnknownName, if the suite has no such task.
    """
    chosen = suite.spec.tasks if tasks is None else [suite.task(name).name for name in tasks]
    return {task: evaluate_task(model, suite, task, split, limit=limit) for task in chosen}


@torch.inference_mode()
def evaluate_task(
    model: nn.Module, suite: Suite, task: str, split: str = "test", *, limit: int | None = None
) -> tuple[int, int]:
    """(correct, total) of one task. Counts on the device and waits for it once."""
    model.eval()
    head = suite.heads[task]
    correct = torch.zeros((), dtype=torch.int64, device=suite.device)
    total = 0
    for batch, labels in suite.batches(task, split, limit=limit, batch_size=BATCH_SIZE):
        correct += (predict(model, head, batch).argmax(dim=-1) == labels).sum()
        total += len(labels)
    return int(correct), total
