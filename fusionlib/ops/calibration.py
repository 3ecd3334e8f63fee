"""What a data-guided method may look at: inputs of each task, and the scores of a model under the task's head."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fusionlib.core import Need, ParameterError, suggest
from fusionlib.ops.coefficients import whole
from fusionlib.ops.modules import Batch, Head, predict

Read: TypeAlias = Callable[[str, str, Sequence[int]], tuple[Batch, Tensor]]


@dataclass(frozen=True)
class CalibrationData:
    """Examples by task and split, in an order that depends on the seed, the task and the split alone.

    Attributes:
        tasks: names, in the order of the fine-tuned models.
        sizes: (task, split) -> how many examples there are.
        read: from a task, a split and indices to their inputs, as keyword arguments of the models' forward, and
            int64 labels (B,), both on the models' device.
        heads: task -> head, which maps features and the batch to logits.
        allowed: what the method's card says it needs; anything else is refused.
        seed: of the order of the examples, and of whatever else a method draws.
    """

    tasks: tuple[str, ...]
    sizes: Mapping[tuple[str, str], int]
    read: Read = field(repr=False)
    heads: Mapping[str, Head] = field(repr=False)
    allowed: frozenset[Need] = frozenset({"inputs"})
    seed: int = 0

    def draw(self, task: str, split: str, num_examples: int, batch_size: int) -> Iterator[Batch]:
        """Inputs of ``num_examples`` examples (or of all, if there are fewer) drawn without replacement, in batches.

        Raises: ParameterError, for a task or split that is not there or not allowed, or a number below 1.
        """
        return (batch for batch, _ in self._draw(task, split, num_examples, batch_size))

    def draw_labelled(
        self, task: str, split: str, num_examples: int, batch_size: int
    ) -> Iterator[tuple[Batch, Tensor]]:
        """As ``draw``, with labels; only for methods whose card says that they use labels."""
        if "labels" not in self.allowed:
            raise ParameterError("this method's card does not say that it uses labels, so it is given none.")
        return self._draw(task, split, num_examples, batch_size)

    def stream(self, task: str, split: str, batch_size: int) -> Iterator[Batch]:
        """Batches of exactly ``batch_size`` inputs (or of all, if there are fewer) without end.

        Every pass over the split is in a new order; what is left over at the end of a pass is not used in it.
        """
        size = self._check(task, split, batch_size)
        batch_size = min(batch_size, size)
        generator = self.generator(task, split)
        while True:
            order = torch.randperm(size, generator=generator).tolist()
            for start in range(0, size - batch_size + 1, batch_size):
                yield self.read(task, split, order[start : start + batch_size])[0]

    def logits(self, task: str, model: nn.Module, batch: Batch) -> Tensor:
        """Scores (B, classes) of a model under the head of the task."""
        return predict(model, self.heads[task], batch)

    def generator(self, *purpose: str) -> torch.Generator:
        """A source of random numbers that depends on the seed and on what it is for, and on nothing else."""
        # torch's CPU generator looks at 32 bits of its seed only, so everything goes into them
        return torch.Generator().manual_seed(zlib.crc32("\n".join([str(self.seed), *purpose]).encode()))

    def _draw(self, task: str, split: str, num_examples: int, batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
        size = self._check(task, split, batch_size, num_examples)
        order = torch.randperm(size, generator=self.generator(task, split)).tolist()[:num_examples]
        return (self.read(task, split, order[i : i + batch_size]) for i in range(0, len(order), batch_size))

    def _check(self, task: str, split: str, batch_size: int, num_examples: int = 1) -> int:
        if task not in self.tasks:
            raise ParameterError(f"there is no data of a task {task!r}.{suggest(str(task), self.tasks)}")
        if (task, split) not in self.sizes:
            splits = [name for owner, name in self.sizes if owner == task]
            raise ParameterError(f"task {task!r} has no split {split!r}.{suggest(str(split), splits)}")
        if split == "test" and "test-inputs" not in self.allowed:
            raise ParameterError("this method's card does not say that it uses test inputs; use split='val'.")
        whole("batch_size", batch_size, 1)
        whole("num_examples", num_examples, 1)
        return self.sizes[task, split]
