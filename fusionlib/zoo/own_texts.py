"""Texts for a user's own model, tokenised as its tokenizer was saved to do."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError
from fusionlib.zoo.files import hash_files
from fusionlib.zoo.reading import Batch
from fusionlib.zoo.task import Task
from fusionlib.zoo.texts import Tokens, read_columns

_LONGEST = 512
_FILES = ("token", "vocab", "merges", "spiece", "sentencepiece", "special_tokens")
_kept: dict[tuple[Any, ...], tuple[list[Tensor], Tensor]] = {}


@dataclass(frozen=True)
class OwnTokens(Tokens):
    """A model's own tokenizer, special tokens and all; two texts are joined as it joins them.

    ``path`` is the folder of the tokenizer and ``end`` unused; a row is (L,) ids, or (L, 2) ids and types of tokens.
    """

    def tokens(self, task: Task, split: str) -> tuple[list[Tensor], Tensor]:
        """All examples of a split: rows, and int64 labels (n,); kept in memory."""
        source = task.split(split)
        key = (self, source.sha256, source.rows)
        if key not in _kept:
            columns, labels = read_columns(task, split)
            first, second = (columns["text"], None) if "text" in columns else (columns["text_a"], columns["text_b"])
            _kept[key] = self.encode_pairs(first, second), labels.long()
        return _kept[key]

    def encode_pairs(self, first: list[str], second: list[str] | None) -> list[Tensor]:
        """Rows of texts or of pairs of texts, cut to the longest length."""
        made = _tokenizer(self.path, self.tokenizer)(first, second, truncation=True, max_length=self.longest)
        # a text without any tokens, an empty one, is read as one token of padding: a model needs something to read
        ids = [torch.tensor(row or [self.pad], dtype=torch.int64) for row in made["input_ids"]]
        if "token_type_ids" not in made:
            return ids
        kinds = [torch.tensor(kind or [0]) for kind in made["token_type_ids"]]
        return [torch.stack(pair, dim=1) for pair in zip(ids, kinds, strict=True)]

    def encode(self, texts: Any) -> list[Tensor]:
        """Rows of any texts."""
        return self.encode_pairs(list(texts), None)

    def collate(self, rows: Any) -> Batch:
        """One batch, as wide as its longest text."""
        batch = super().collate([row if row.dim() == 1 else row[:, 0] for row in rows])
        if rows[0].dim() == 2:
            kinds = [row[:, 1] for row in rows]
            batch["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(kinds, batch_first=True)
        return batch


def read_texts(folder: Path, config: Any) -> OwnTokens:
    """How the model in a folder reads texts.

    Raises: CheckpointError, if there is no tokenizer.
    """
    files = _files(folder)
    if not [path for path in files if path.name != "tokenizer_config.json"]:  # transformers would make up an empty one
        raise CheckpointError(
            f"{folder} holds no tokenizer. Save it there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    identity = hash_files(set(files), folder)
    tokenizer = _tokenizer(folder, identity)
    positions = getattr(config, "max_position_embeddings", _LONGEST)
    # two positions less: those of RoBERTa begin after its padding token
    longest = min(tokenizer.model_max_length, _LONGEST, positions - 2)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has neither a padding nor an end token, so texts can't be put in one batch. "
            "Set tokenizer.pad_token and save it again."
        )
    return OwnTokens(identity, int(longest), int(pad), int(pad), folder)


def _files(folder: Path) -> list[Path]:
    named = [path for path in folder.iterdir() if path.name.startswith(_FILES) and path.suffix != ".safetensors"]
    return [path for path in named if path.is_file()]


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path, identity: str) -> Any:
    """The tokenizer in a folder whose files have this hash together; of other files it is another entry here."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if hash_files(set(_files(folder)), folder) != identity:
            raise CheckpointError(
                f"the tokenizer in {folder} is not what it was when the suite was loaded. Load the suite again."
            )
        return found
    except CheckpointError:
        raise
    except Exception as error:  # the class that tokenizers raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the tokenizer in {folder} can't be read ({reason}). Save it again: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        ) from error
