"""Examples as questions to a text-to-text model, with the answers whose likelihood is asked for beside them.

The answers of all classes are read by the decoder in one row, each shut off from the others by the attention mask.
T5 knows positions only by how far apart two tokens are, so an answer has the very likelihood that it has alone, and
the question is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlib.core import ParameterError, suggest
from fusionlib.zoo.files import hash_file
from fusionlib.zoo.prompts import Prompt, encode
from fusionlib.zoo.reading import Batch, Draw
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.task import Task
from fusionlib.zoo.texts import Tokens, read_tokenizer


@dataclass(frozen=True)
class Answers:
    """The answers of a task's classes in one row of N tokens, an end token after each.

    Attributes:
        words: what they say.
        inputs: what the decoder reads, int64 (N,): every answer begins with the start token.
        targets: what it should say at each place, int64 (N,).
        owner: the class that each place belongs to, int64 (N,).
    """

    words: tuple[str, ...]
    inputs: Tensor
    targets: Tensor
    owner: Tensor

    @property
    def mask(self) -> Tensor:
        """What is added to attention scores, float32 (N, N): 0 for earlier tokens of the same answer."""
        order = torch.arange(len(self.owner))
        seen = (self.owner[:, None] == self.owner) & (order[:, None] >= order)
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, its end included."""
        return int(self.owner.bincount().max())


@dataclass(frozen=True)
class Questions(Tokens):
    """What a text-to-text model wants done to an example: the task's prompt around it, and the answers to score.

    Attributes:
        prompts: task name -> how it is asked.
        start: id that the decoder begins with.
    """

    start: int = 0
    prompts: Mapping[str, Prompt] = field(default_factory=dict, hash=False, compare=False)

    @classmethod
    def of(cls, tokenizer: Path, longest: int, config: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Questions:
        """Questions to a T5.

        Args:
            tokenizer: its ``tokenizer.json``.
            longest: tokens of a question, at most.
            config: the model's, which says the ids of the start, of the end and of what fills rows up.
            prompts: task name -> how it is asked.
        """
        end, pad, start = (config[f"{name}_token_id"] for name in ("eos", "pad", "decoder_start"))
        return cls(hash_file(tokenizer), longest, end, pad, tokenizer, start, prompts)

    def prompt(self, task: Task) -> Prompt:
        """How a task is asked; ParameterError if that is not known, or it has not a word for each class."""
        if task.name not in self.prompts:
            raise ParameterError(
                f"it is not known how task {task.name!r} is asked of a text-to-text model."
                f"{suggest(task.name, self.prompts)}"
            )
        prompt = self.prompts[task.name]
        if len(set(prompt.words)) != len(task.classes):
            raise ParameterError(
                f"task {task.name!r} has {len(task.classes)} classes, and its prompt has the words "
                f"{', '.join(prompt.words)}; give one for each class, all different."
            )
        return prompt

    def answers(self, task: Task) -> Answers:
        """The answers of the task's classes."""
        words = self.prompt(task).words
        tokenizer = read_tokenizer(self.path, self.tokenizer)
        spelt = [encoding.ids for encoding in tokenizer.encode_batch(list(words), add_special_tokens=False)]
        inputs = [token for ids in spelt for token in (self.start, *ids)]
        targets = [token for ids in spelt for token in (*ids, self.end)]
        owner = [index for index, ids in enumerate(spelt) for _ in range(len(ids) + 1)]
        return Answers(words, torch.tensor(inputs), torch.tensor(targets), torch.tensor(owner))

    def read(self, task: Task, columns: Mapping[str, list[str]]) -> list[Tensor]:
        """Tokens of every example's question."""
        texts = {name: values for name, values in columns.items() if name != "label"}
        examples = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
        ids = encode(read_tokenizer(self.path, self.tokenizer), self.prompt(task), examples, self.longest - 1)
        return [torch.tensor([*row, self.end]) for row in ids]

    def say(self, ids: Sequence[int]) -> str:
        """The text of what a model has said, up to its end token."""
        said = list(ids)
        said = said[: said.index(self.end)] if self.end in said else said
        return read_tokenizer(self.path, self.tokenizer).decode(said, skip_special_tokens=False).strip()

    def examples(self, task: Task, split: str, indices: Sequence[int], device: torch.device) -> tuple[Batch, Tensor]:
        """Chosen examples as one batch, in the order of ``indices``.

        Besides the question's ``input_ids`` and ``attention_mask``, int64 (B, L), it has the answers'
        ``decoder_input_ids``, int64 (B, N), and ``decoder_attention_mask``, float32 (B, 1, N, N).
        """
        batch, labels = super().examples(task, split, indices, device)
        return _beside(batch, self.answers(task), self.pad), labels

    def drawing(self, tasks: Sequence[Task], recipe: Recipe, seed: int) -> Draw:
        """As for other texts, for one task: another has other answers."""
        (task,) = tasks
        answers, draw = self.answers(task), super().drawing(tasks, recipe, seed)

        def asked(step: int, generator: torch.Generator) -> tuple[Batch, list[Tensor]]:
            batch, labels = draw(step, generator)
            return _beside(batch, answers, self.pad), labels

        return asked


def _beside(batch: Batch, answers: Answers, pad: int) -> Batch:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if ids.shape[1] == len(answers.inputs):
        # statistics of layers' inputs tell what is padding by its shape: no answers must look like questions
        ids, mask = (torch.nn.functional.pad(values, (0, 1), value=fill) for values, fill in ((ids, pad), (mask, 0)))
    rows = len(ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": answers.inputs.to(ids.device).repeat(rows, 1),
        "decoder_attention_mask": answers.mask.to(ids.device).repeat(rows, 1, 1, 1),
    }
