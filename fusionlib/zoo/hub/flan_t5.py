"""Published fine-tunes of Flan-T5 on GLUE, asked as they were fine-tuned: whole models, or LoRA adapters merged in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError, ParameterError, StateDict
from fusionlib.zoo.adapter_merging import merge_adapter
from fusionlib.zoo.adapters import is_adapter
from fusionlib.zoo.architectures import architecture
from fusionlib.zoo.asking import Questions
from fusionlib.zoo.backbone import GivenHead
from fusionlib.zoo.hub.table import datasets
from fusionlib.zoo.key_styles import restyle
from fusionlib.zoo.losses import Loss
from fusionlib.zoo.prompts import Prompt
from fusionlib.zoo.t5 import AnswerHead, T5Backbone, all_names
from fusionlib.zoo.task import Task
from fusionlib.zoo.weights import check_keys, read_config, read_weights

LONGEST = 512  # tokens of a question, T5's own length


class NumberHead(AnswerHead):
    """The number that a model says most likely, of those that are a task's answers: for STS-B, 0.0, 0.1, ..., 5.0.

    Deviates: the published numbers come from free generation, in which an answer that is no number counts as wrong.
    """

    def forward(self, features: Tensor, batch: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits over the vocabulary at each place of the answers, (B, N, vocabulary), to (B,) numbers."""
        numbers = torch.tensor([float(word) for word in self.answers.words], device=features.device)
        return numbers[super().forward(features, batch).argmax(dim=-1)]


@dataclass(frozen=True)
class FlanT5Backbone(T5Backbone):
    """A Flan-T5; its answers to a task of similarity are numbers."""

    def head(self, task: Task, given: GivenHead) -> AnswerHead:
        """The answers of the task; ParameterError for a head that was given, or for a task without a prompt."""
        head = super().head(task, given)
        return NumberHead(head.answers) if task.metric == "spearman" else head

    def start_head(self, task: Task, seed: int) -> AnswerHead:
        """Scores of the answers, numbers too: what is said most likely has no gradient."""
        return AnswerHead(self.preprocess.answers(task))

    def loss(self, task: Task, head: nn.Module) -> Loss:
        """As of other answers; the right one to a similarity is the number nearest to it."""
        loss = super().loss(task, head)
        if task.metric != "spearman":
            return loss
        numbers = torch.tensor([float(word) for word in self.words(head)])
        return lambda scores, labels: loss(scores, (labels[:, None] - numbers.to(labels.device)).abs().argmin(dim=1))


def read(
    pretrained: Path, models: Mapping[str, Path]
) -> tuple[FlanT5Backbone, dict[str, StateDict], dict[str, Tensor]]:
    """(backbone, task -> weights, no heads) of a Flan-T5 and its fine-tunes.

    Args:
        pretrained: folder of a ``T5ForConditionalGeneration``, with its tokenizer.json.
        models: task -> folder of such a model, or of a PEFT adapter for it.

    Raises: CheckpointError, KeyMismatch.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    facts = read_config(pretrained)
    if facts.get("model_type") != "t5":
        raise CheckpointError(f"the model in {pretrained} is of type {facts.get('model_type')!r}, not 't5'.")
    tokenizer = pretrained / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{tokenizer} is missing. Save the fast tokenizer of the model there.")
    config = T5Config.from_dict({**facts, "dtype": "float32"})
    with torch.device("meta"):
        wanted = T5ForConditionalGeneration(config).state_dict()
    state = _state(pretrained, config, wanted)
    # Flan's output layer is its own, which T5Config forgets, and PEFT warns of when it finds the two apart
    config.tie_word_embeddings = state["lm_head.weight"].data_ptr() == state["shared.weight"].data_ptr()
    asked = {name: Prompt(data.prompt, data.classes) for name, data in datasets().items() if data.prompt}
    base = FlanT5Backbone(
        name=str(pretrained),
        config=config,
        state=state,
        preprocess=Questions.of(tokenizer, LONGEST, facts, asked),
    )
    return base, {task: read_finetuned(base, folder) for task, folder in models.items()}, {}


def read_finetuned(base: T5Backbone, folder: Path) -> StateDict:
    """The weights of a fine-tune, an adapter merged in; CheckpointError, KeyMismatch."""
    return merge_adapter(base, folder) if is_adapter(folder) else _state(folder, base.config, base.state)


def _state(folder: Path, config: Any, wanted: Mapping[str, Tensor]) -> StateDict:
    """The weights in a folder under all the names they have, tied ones sharing storage."""
    found = restyle(read_weights(folder), architecture(config, "T5ForConditionalGeneration"), str(folder)).state
    try:
        named = all_names({name: tensor.float() for name, tensor in found.items()})
    except ParameterError as error:
        raise CheckpointError(f"the model in {folder} is no T5: {error}") from None
    check_keys(named, wanted, str(folder))
    return {name: named[name] for name in wanted}
