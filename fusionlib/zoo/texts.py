"""Texts to tokens: right-padded batches, and training batches of texts of similar length."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fusionlib.core import CheckpointError
from fusionlib.zoo.checking import check_labels, check_texts
from fusionlib.zoo.reading import Batch, Draw
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.rows import read_bytes
from fusionlib.zoo.task import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POOL = 16  # batches that are sorted by length together
_SEPARATOR = " <sep> "


@dataclass(frozen=True)
class Tokens:
    """What a language model wants done to a text: its tokens and an end token; two texts are joined by ``<sep>``.

    Attributes:
        tokenizer: hash of the tokenizer's file.
        longest: most tokens, the end token included; what is over is cut off before it.
        end: id of the end token.
        pad: id that fills up the shorter texts of a batch, on the right; the attention mask is 0 there.
        path: the tokenizer's file.
    """

    modality: ClassVar[str] = "text"

    tokenizer: str
    longest: int
    end: int
    pad: int
    path: Path = field(repr=False, compare=False)

    def tokens(self, task: Task, split: str) -> tuple[list[Tensor], Tensor]:
        """All examples of a split: their tokens, int64 (L,) each, and labels (n,); kept in memory."""
        source = task.split(split)
        key = (type(self), self, task.name, split, source.sha256, source.rows)
        if key not in _kept:
            columns, labels = read_columns(task, split)
            _kept[key] = self.read(task, columns), labels
        return _kept[key]

    def read(self, task: Task, columns: Mapping[str, list[str]]) -> list[Tensor]:
        """Tokens of every example of a split, given by its columns."""
        if "text" in columns:
            return self.encode(columns["text"])
        both = zip(columns["text_a"], columns["text_b"], strict=True)
        return self.encode([f"{one}{_SEPARATOR}{other}" for one, other in both])

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Tokens of any texts."""
        encodings = read_tokenizer(self.path, self.tokenizer).encode_batch(list(texts), add_special_tokens=False)
        return [torch.tensor([*encoding.ids[: self.longest - 1], self.end]) for encoding in encodings]

    def collate(self, rows: Sequence[Tensor]) -> Batch:
        """One batch, as wide as its longest text."""
        ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=self.pad)
        lengths = torch.tensor([len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}

    def batches(
        self, task: Task, split: str, limit: int | None, size: int, device: torch.device
    ) -> Iterator[tuple[Batch, Tensor]]:
        """({"input_ids", "attention_mask": int64 (B, L)}, int64 labels (B,)) of the first ``limit`` examples.

        Short texts come first, so that little of a batch is padding.
        """
        rows, _ = self.tokens(task, split)
        order = sorted(range(len(rows[:limit])), key=lambda index: len(rows[index]))
        for start in range(0, len(order), size):
            yield self.examples(task, split, order[start : start + size], device)

    def examples(self, task: Task, split: str, indices: Sequence[int], device: torch.device) -> tuple[Batch, Tensor]:
        """Chosen examples as one batch, in the order of ``indices``."""
        rows, labels = self.tokens(task, split)
        batch = self.collate([rows[index] for index in indices])
        return {name: value.to(device) for name, value in batch.items()}, labels[list(indices)].to(device)

    def drawing(self, tasks: Sequence[Task], recipe: Recipe, seed: int) -> Draw:
        """Epochs in which every example comes once; they depend on the seed and the step alone."""
        data = [self.tokens(task, "train") for task in tasks]
        lengths = [[len(row) for row in rows] for rows, _ in data]

        def draw(step: int, generator: torch.Generator) -> tuple[Batch, list[Tensor]]:
            drawn = [_rows_of_step(tuple(sizes), recipe.batch_size, seed, step) for sizes in lengths]
            texts = [rows[index] for (rows, _), chosen in zip(data, drawn, strict=True) for index in chosen]
            return self.collate(texts), [labels[chosen] for (_, labels), chosen in zip(data, drawn, strict=True)]

        return draw


def _rows_of_step(lengths: tuple[int, ...], size: int, seed: int, step: int) -> list[int]:
    per_epoch = math.ceil(len(lengths) / size)
    return _epoch(lengths, size, seed, step // per_epoch)[step % per_epoch]


@functools.lru_cache(maxsize=16)
def _epoch(lengths: tuple[int, ...], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch: pools are drawn at random, sorted by length, cut, and the batches shuffled."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), POOL * size):
        pool = sorted(order[start : start + POOL * size], key=lengths.__getitem__)
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


@functools.lru_cache(maxsize=8)
def read_tokenizer(path: Path, sha256: str) -> Tokenizer:
    """The tokenizer in a file of ``tokenizers`` that has this hash.

    Raises: CheckpointError, if it is missing, damaged or another than it was.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the installation is incomplete, install fusionlib again.")
    content = read_bytes(path, sha256)
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the class that tokenizers raises
        raise CheckpointError(f"the tokenizer {path} can't be read ({error}). Copy or make it again.") from error


def read_columns(task: Task, split: str) -> tuple[dict[str, list[str]], Tensor]:
    """Texts of a split by column, and its labels: int64 for classes, float32 for numbers.

    Raises: ParameterError, naming the first row whose label or text is none; CheckpointError.
    """
    source, dataset = task.split(split), task.dataset(split)
    what = f"the {split} split of task {task.name!r}"
    columns: Any = dataset.with_format("arrow")[:]
    labels = columns["label"]
    check_labels(labels, task.classes, what, source.place)
    texts = {name: columns[name] for name in columns.column_names if name != "label"}
    check_texts({name: texts[name] for name in ("text", "text_a", "text_b") if name in texts}, what, source.place)
    found = torch.tensor(labels.to_pylist())
    found = found if found.is_floating_point() else found.long()
    return {name: column.to_pylist() for name, column in texts.items()}, found


_kept: dict[tuple[Any, ...], tuple[list[Tensor], Tensor]] = {}
