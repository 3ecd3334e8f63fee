"""A backbone: an architecture, its pretrained weights, what it makes of raw examples, and what its heads are."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError, StateDict
from fusionlib.zoo.files import DATA, hash_file
from fusionlib.zoo.inputs import Preprocess
from fusionlib.zoo.losses import Loss, loss_of
from fusionlib.zoo.reading import Batch, Reading
from fusionlib.zoo.task import Task

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

    from fusionlib.zoo.text_tower import TextTower

BICUBIC = 3
# a weight, all tensors of a head by name, or a file with either; None for the one that belongs to the task
GivenHead: TypeAlias = Tensor | Mapping[str, Tensor] | str | PathLike[str] | None


@dataclass(frozen=True)
class Backbone:
    """What all backbones have; each kind says what its module and its heads are.

    Attributes:
        name: as the user asked for it.
        config: of the module, from transformers.
        state: the pretrained weights, float32, on the CPU.
        preprocess: how it reads the examples of a task.
    """

    learns_heads: ClassVar[bool] = False  # whether heads are trained with the fine-tunes and come with them
    metric: ClassVar[str] = "accuracy"  # what is measured of its answers on tasks that count right ones

    name: str
    config: Any = field(repr=False)
    state: StateDict = field(repr=False)
    preprocess: Reading

    @property
    def dim(self) -> int:
        """Number of features."""
        raise NotImplementedError

    @property
    def weights(self) -> StateDict:
        """All that its predictions depend on: ``state``, and whatever stays as it is when states are fused."""
        return self.state

    def module(self) -> nn.Module:
        """A new module, with whatever weights."""
        raise NotImplementedError

    def head(self, task: Task, given: GivenHead) -> nn.Module:
        """What was given as the head of a task, else the one that belongs to it; ParameterError, CheckpointError."""
        raise NotImplementedError

    def start_head(self, task: Task, seed: int) -> nn.Module:
        """The head that a fine-tune of this seed starts with."""
        return self.head(task, None)

    def complete(self, state: StateDict) -> StateDict:
        """Weights as files hold them, under all the names of the module's state dict."""
        return state

    def loss(self, task: Task, head: nn.Module) -> Loss:
        """What a fine-tune of the task makes small: a function of the head's output and the labels."""
        return loss_of(task)

    def words(self, head: nn.Module) -> tuple[str, ...]:
        """The right answer of each class of a head in words; ParameterError, if models of this kind say none."""
        raise ParameterError(f"{self.name} answers with scores of classes, not in words; measure its accuracy.")

    def answer(self, model: nn.Module, head: nn.Module, batch: Batch) -> tuple[Tensor, list[str]]:
        """Scores (B, classes), and what a model answers to each example in words; ParameterError as for ``words``."""
        raise ParameterError(f"{self.name} answers with scores of classes, not in words; measure its accuracy.")

    def build(self, state: StateDict | None = None) -> nn.Module:
        """A new module with these weights (the pretrained ones if None), in evaluation mode, on the CPU."""
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten at once
            model = self.module()
        model.load_state_dict(self.state if state is None else state)
        return model.eval()


@dataclass(frozen=True)
class ClipBackbone(Backbone):
    """A CLIP-like vision tower with projection, ``CLIPVisionModelWithProjection``; its heads compare by cosine.

    Attributes:
        logit_scale: factor on the cosines of its heads.
        text_tower: reads the text tower, if one came with it.
    """

    logit_scale: float
    text_tower: Callable[[], TextTower] | None = field(default=None, repr=False)

    @property
    def dim(self) -> int:
        """Number of features, the width of the projection."""
        return self.config.projection_dim

    def module(self) -> nn.Module:
        """A new tower, with whatever weights."""
        from transformers import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(self.config)

    def head(self, task: Task, given: GivenHead) -> nn.Module:
        """See :func:`fusionlib.zoo.heads.make_head`."""
        from fusionlib.zoo.heads import make_head

        return make_head(task, self, given)


def tiny_clip() -> ClipBackbone:
    """The backbone that ships with the package: 869,632 parameters, 32 x 32 pictures, 384 features."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig

    facts = json.loads((DATA / "config.json").read_text(encoding="utf-8"))
    config: CLIPVisionConfig = CLIPVisionConfig.from_dict({**facts, "dtype": "float32"})
    size = facts["image_size"]
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    return ClipBackbone(
        name="tiny-clip",
        config=config,
        state={name: tensor.float() for name, tensor in load_file(DATA / "base.safetensors").items()},
        preprocess=Preprocess(size, size, size, BICUBIC, mean, std),
        logit_scale=facts["logit_scale"],
    )


@functools.cache
def tiny_clip_hash() -> str:
    """Hash of what the fine-tunes of tiny-clip start from: base weights and heads."""
    return hash_file(DATA / "base.safetensors")[:32] + hash_file(DATA / "heads.safetensors")[:32]
