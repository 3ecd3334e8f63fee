"""What a backbone makes of raw examples: the seam between tasks of pictures or texts and everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.task import Task

Batch: TypeAlias = dict[str, Tensor]
# (step, generator) -> the inputs of all tasks, one task after the other, and the labels of each
Draw: TypeAlias = Callable[[int, torch.Generator], tuple[Batch, list[Tensor]]]


class Reading(Protocol):
    """Examples to keyword arguments of a module's forward. Its ``repr`` says all that determines what comes out.

    Attributes:
        modality: of the tasks it reads, "image" or "text".
    """

    modality: ClassVar[str]

    def batches(
        self, task: Task, split: str, limit: int | None, size: int, device: torch.device
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Inputs and labels of the first ``limit`` examples, ``size`` at a time, in an order of the reader's own."""
        ...

    def examples(self, task: Task, split: str, indices: Sequence[int], device: torch.device) -> tuple[Batch, Tensor]:
        """Chosen examples as one batch, in the order of ``indices``; IndexError if there is no such example."""
        ...

    def drawing(self, tasks: Sequence[Task], recipe: Recipe, seed: int) -> Draw:
        """How training batches are drawn from the train splits, on the CPU; the same step and state, the same batch."""
        ...
