"""The tokenizer of the embedded language models, made from their pretraining text alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 6144
SPECIAL = ("<pad>", "</s>", "<sep>", *(f"<x{number}>" for number in range(13)))
END = SPECIAL.index("</s>")


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of :data:`VOCABULARY` entries that lower-cases; ids of :data:`SPECIAL` come first.

    ``<x0>`` to ``<x12>`` are for models that fill gaps.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack_windows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Tensor:
    """Documents in a row, ``</s>`` after each, cut into windows: int64 (windows, length); the rest is dropped."""
    rows = [[*encoding.ids, END] for encoding in tokenizer.encode_batch(list(texts))]
    flat = torch.tensor([token for row in rows for token in row])
    return flat[: len(flat) // length * length].view(-1, length)
