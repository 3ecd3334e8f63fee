"""The frozen ``Suite``: tasks, one pretrained model, its fine-tunes and the heads. Everything else works on one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError, StateDict, UnknownName, suggest
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.reading import Batch
from fusionlib.zoo.task import SPLITS, Task


@dataclass(frozen=True)
class SuiteSpec:
    """What a suite was asked for by.

    Attributes:
        backbone: name, local folder or hub id.
        tasks: task names, in order.
        tasks_name: the named set they are, or None.
        tuning: "full", "lora", "l-lora" or "none".
        seed: of the fine-tuning run.
    """

    backbone: str
    tasks: tuple[str, ...]
    tasks_name: str | None
    tuning: str
    seed: int


@dataclass(frozen=True)
class Suite:
    """Models fine-tuned from one pretrained model, with all that is needed to fuse and to judge them.

    Attributes:
        spec: what was asked for.
        tasks: in the order of ``spec.tasks``.
        pretrained: weights of the backbone, float32, on the CPU; of L-LoRA, the adapter where it started.
        finetuned: task -> weights, adapters merged in (of L-LoRA, the adapter); empty with ``tuning="none"``.
        heads: task -> head, on ``device``; heads are never fused.
        device: where models from ``model`` and inputs from ``batches`` are.
        fingerprint: hash of checkpoints, heads and data: equal for equal content, wherever it was loaded.
        backbone: architecture and preprocessing.
        multitask: weights trained on all the tasks at once, None if there are none.
    """

    spec: SuiteSpec
    tasks: tuple[Task, ...] = field(repr=False)
    pretrained: StateDict = field(repr=False)
    finetuned: Mapping[str, StateDict] = field(repr=False)
    heads: Mapping[str, nn.Module] = field(repr=False)
    device: torch.device
    fingerprint: str
    backbone: Backbone = field(repr=False)
    multitask: StateDict | None = field(default=None, repr=False)

    @property
    def weights(self) -> tuple[StateDict, list[StateDict]]:
        """(pretrained, fine-tuned in the order of the tasks): ``fuse(*suite.weights, scale=0.3)``."""
        return self.pretrained, list(self.finetuned.values())

    @property
    def models(self) -> tuple[nn.Module, list[nn.Module]]:
        """The same as ``weights``, as new modules on ``device``."""
        return self.model(), [self.model(state) for state in self.finetuned.values()]

    def model(self, state: StateDict | None = None) -> nn.Module:
        """A new backbone with these weights (the pretrained ones if None), in evaluation mode, on ``device``."""
        return self.backbone.build(state).to(self.device)

    def task(self, name: str) -> Task:
        """The task of this name; UnknownName if the suite has none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UnknownName(f"the suite has no task {name!r}.{suggest(str(name), self.spec.tasks)}")

    def batches(
        self, task: str, split: str, *, limit: int | None = None, batch_size: int = 256
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Preprocessed inputs and labels of a task, on ``device``, always in the same order: texts by their length.

        Args:
            task: its name.
            split: "train", "val" or "test".
            limit: only the first examples (splits are shuffled already); None means all.
            batch_size: at most so many examples per batch.

        Yields: (keyword arguments of the model's forward, int64 labels (B,)). Of pictures the arguments are
            ``pixel_values``, float32 (B, 3, H, W); of texts ``input_ids`` and ``attention_mask``, int64 (B, L); of
            questions to a text-to-text model the answers' ``decoder_input_ids`` and mask besides.
        Raises: UnknownName, ParameterError.
        """
        source = self.task(task)
        if split not in SPLITS:
            raise ParameterError(f"split={split!r} is not a split.{suggest(str(split), SPLITS)}")
        source.split(split)
        if limit is not None:
            _check_positive("limit", limit)
        _check_positive("batch_size", batch_size)
        return self.backbone.preprocess.batches(source, split, limit, batch_size, self.device)

    def examples(self, task: str, split: str, indices: Sequence[int]) -> tuple[Batch, Tensor]:
        """Chosen examples of a task, as one batch in the order of ``indices``, on ``device``.

        Raises: UnknownName, ParameterError; IndexError, if the split has no such example.
        """
        source = self.task(task)
        return self.backbone.preprocess.examples(source, split, indices, self.device)


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(f"{name}={value!r} must be an integer, 1 or greater.")
