"""One forward pass for examples of several tasks, each scored under the head of its own task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError
from fusionlib.ops.modules import Batch, Head, output_tensor, predict


def joinable(batches: Sequence[Batch]) -> bool:
    """Whether the batches hold the same things, and these differ in size only where they can be filled up.

    That is so for pictures of one size and for texts; not where a mask says who may look at whom, (B, 1, N, N).
    """
    if not batches or any(batch.keys() != batches[0].keys() for batch in batches):
        return False
    return all(
        value.ndim == first.ndim and (value.ndim == 2 or value.shape[1:] == first.shape[1:])
        for batch in batches
        for value, first in ((batch[name], batches[0][name]) for name in batches[0])
    )


def join(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """One batch of several, in their order; what is two-dimensional is filled up with zeros to the longest.

    Two-dimensional are token ids and masks, (B, L). Where a text was filled up the mask is 0, and no id matters.

    Raises: ParameterError, if they are not :func:`joinable`.
    """
    if not joinable(batches):
        held = "; ".join(", ".join(f"{k} {tuple(v.shape)}" for k, v in batch.items()) for batch in batches) or "none"
        raise ParameterError(
            f"one batch can be made of batches of the same names and sizes, except for the length of texts; given: "
            f"{held}. Use one after the other."
        )
    joined = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if values[0].ndim == 2:
            width = max(value.shape[1] for value in values)
            values = [nn.functional.pad(value, (0, width - value.shape[1])) for value in values]
        joined[name] = torch.cat(values)
    return joined


def predict_jointly(model: nn.Module, heads: Sequence[Head], batches: Sequence[Batch]) -> list[Tensor]:
    """Logits (B, classes) of every batch under its own head, from one pass of the model where they can be joined.

    For small batches that is quicker than a pass for each: what a pass costs besides arithmetic is paid once.

    Args:
        model: a backbone; of an ensemble call ``predict`` for each batch.
        heads, batches: one of each per task.
    """
    if not joinable(batches):
        return [predict(model, head, batch) for head, batch in zip(heads, batches, strict=True)]
    joined = join(batches)
    features = output_tensor(model(**joined))
    logits, start = [], 0
    for head, batch in zip(heads, batches, strict=True):
        rows = slice(start, start := start + len(next(iter(batch.values()))))
        logits.append(head(features[rows], {name: value[rows] for name, value in joined.items()}))
    return logits
