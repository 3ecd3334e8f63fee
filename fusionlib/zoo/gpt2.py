"""The embedded GPT-2, and the classification head of a language model, which reads the last token."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError
from fusionlib.zoo.backbone import Backbone, GivenHead
from fusionlib.zoo.files import TEXT, hash_file
from fusionlib.zoo.heads import check_finite, given_weight
from fusionlib.zoo.task import Task
from fusionlib.zoo.texts import Tokens

FOLDER = TEXT / "tiny-gpt2"
LONGEST = 64


class LastTokenHead(nn.Module):
    """Scores of classes: a linear map, without bias, of the hidden state of the last token that is not padding.

    Args:
        weight: (classes, dim), one row per class in label order.
        trained: whether the weight is a parameter, to be trained, or a buffer.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, *, trained: bool = False):
        super().__init__()
        if trained:
            self.weight = nn.Parameter(weight.float())
        else:
            self.register_buffer("weight", weight.float())

    def forward(self, features: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, L, dim) hidden states and their batch, for its ``attention_mask`` (B, L), to (B, classes) logits."""
        last = batch["attention_mask"].sum(dim=1) - 1
        return features.take_along_dim(last[:, None, None], dim=1)[:, 0] @ self.weight.T


@dataclass(frozen=True)
class Gpt2Backbone(Backbone):
    """A ``GPT2Model``; each fine-tune trains a head of its own, which is kept and never fused."""

    learns_heads: ClassVar[bool] = True

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self.config.n_embd

    def module(self) -> nn.Module:
        """A new model, with whatever weights."""
        from transformers import GPT2Model

        return GPT2Model(self.config)

    def head(self, task: Task, given: GivenHead) -> nn.Module:
        """A head of this weight, or of the one in this file.

        Raises: ParameterError, if nothing is given or the shape does not fit; CheckpointError.
        """
        if given is None:
            raise ParameterError(
                f"there is no head for task {task.name!r}: heads of {self.name} are trained with the fine-tunes. Use "
                f'tuning="full", or pass heads={{{task.name!r}: tensor or .safetensors path}}.'
            )
        weight = given_weight(given, task)
        wanted = (len(task.classes), self.dim)
        if tuple(weight.shape) != wanted:
            raise ParameterError(
                f"the head of task {task.name!r} has shape {tuple(weight.shape)}, but {wanted} is needed: one row per "
                f"class of the task, one column per feature of {self.name!r}."
            )
        check_finite({"weight": weight}, task)
        return LastTokenHead(weight)

    def start_head(self, task: Task, seed: int) -> nn.Module:
        """Small random numbers, as transformers initialises them."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(task.classes), self.dim, generator=generator)
        return LastTokenHead(self.config.initializer_range * drawn, trained=True)


def tiny_gpt2() -> Gpt2Backbone:
    """The language model that ships with the package: 1.6 million parameters, 4 layers, 128 features."""
    from safetensors.torch import load_file
    from transformers import GPT2Config

    facts = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    tokenizer = TEXT / "tokenizer.json"
    return Gpt2Backbone(
        name="tiny-gpt2",
        config=GPT2Config.from_dict({**facts, "dtype": "float32"}),
        state={name: tensor.float() for name, tensor in load_file(FOLDER / "model.safetensors").items()},
        preprocess=Tokens(hash_file(tokenizer), LONGEST, facts["eos_token_id"], facts["pad_token_id"], tokenizer),
    )


@functools.cache
def tiny_gpt2_hash() -> str:
    """Hash of what the fine-tunes of tiny-gpt2 start from: base weights and tokenizer."""
    return hash_file(FOLDER / "model.safetensors")[:32] + hash_file(TEXT / "tokenizer.json")[:32]
