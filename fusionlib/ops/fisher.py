"""Diagonal Fisher information, from per-example gradients: how much each weight matters to a model's predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from fusionlib.core import NotApplicable, ParameterError, StateDict
from fusionlib.ops.modules import Batch
from fusionlib.ops.squares import Score, all_at_once, held_per_example, one_by_one

EXACT_CLASSES = 4  # up to so many, every label gets a backward pass of its own
CHUNK_BYTES = 256 << 20  # for the gradients that are held for the examples taken at once

Logits = Callable[[nn.Module, Batch], Tensor]


def diagonal_fisher(
    model: nn.Module,
    logits: Logits,
    batches: Iterable[tuple[Batch, Tensor | None]],
    *,
    generator: torch.Generator | None = None,
    exact_classes: int = EXACT_CLASSES,
    chunk_bytes: int = CHUNK_BYTES,
) -> StateDict:
    """Mean over examples of the expected squared derivative of log p(y | x) by every parameter.

    Args:
        model: is evaluated in evaluation mode and in float32 (or float64), and left as it was.
        logits: (model, batch) -> scores, shape (B, classes).
        batches: each with labels (B,), for the empirical Fisher, or with None for the labels the model itself predicts.
        generator: on the CPU, of the signs; needed where labels are None and there are many classes.
        exact_classes: up to so many classes the expectation over labels costs one backward pass per class. Beyond, one
            in all: with random signs e, (sum_y e_y sqrt(p_y) d log p_y)^2 has that expectation, and less noise than
            the square for one sampled label.
        chunk_bytes: bound on the gradients held per example, those of all but linear layers; one is always taken.
    Returns: parameter name -> float32 (or float64) tensor of its shape, 0 where no gradient arrives. Tied parameters
        are there once; buffers are not.
    Raises: NotApplicable, for scores of another shape; ParameterError, if there are no examples.
    """
    copied = _in_evaluation(model)
    total = {
        name: torch.zeros_like(value, memory_format=torch.contiguous_format)
        for name, value in copied.named_parameters()
    }
    chunk = max(1, chunk_bytes // max(1, held_per_example(copied)))
    seen = 0
    with torch.no_grad():
        for batch, labels in batches:
            batch = {name: _widened(value) for name, value in batch.items()}
            classes = _num_classes(logits(copied, _rows(batch, slice(0, 1))))
            count = len(next(iter(batch.values())))
            seen += count
            score = _score_of(logits, own=labels is None)
            for rows, directions in _directions(count, classes, labels, generator, exact_classes, min(chunk, count)):
                inputs = _rows(batch, rows)
                directions = directions.to(next(iter(inputs.values())).device)
                for name, value in _squares(copied, score, inputs, directions).items():
                    total[name].add_(value)
    if not seen:
        raise ParameterError("the Fisher information needs at least one example, and `batches` holds none.")
    return {name: value.div_(seen) for name, value in total.items()}


def _score_of(logits: Logits, *, own: bool) -> Score:
    """The product of a direction with log p, or with sqrt(p) log p, p held fixed, for ``own``."""

    def score(model: nn.Module, batch: Batch, direction: Tensor) -> Tensor:
        log_p = logits(model, batch)[0].log_softmax(dim=-1)
        weight = log_p.detach().div(2).exp() if own else 1.0
        return (log_p * weight * direction.to(log_p)).sum()

    return score


def _squares(model: nn.Module, score: Score, batch: Batch, directions: Tensor) -> StateDict:
    try:
        return all_at_once(model, score, batch, directions)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return one_by_one(model, score, batch, directions)  # the model looks at values to branch


def _directions(
    count: int,
    classes: int,
    labels: Tensor | None,
    generator: torch.Generator | None,
    exact_classes: int,
    chunk: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Which examples, and what to differentiate for each, in chunks: indices (n,) and directions (n, classes)."""
    rows = torch.arange(count)
    if labels is not None:
        directions = nn.functional.one_hot(labels.cpu(), classes)
    elif classes <= exact_classes:
        rows = rows.repeat_interleave(classes)
        directions = torch.eye(classes).repeat(count, 1)
    else:
        directions = torch.randint(0, 2, (count, classes), generator=generator) * 2 - 1
    yield from zip(rows.split(chunk), directions.split(chunk), strict=True)


def _in_evaluation(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model).eval()
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in copied.parameters())
    return copied.float() if half else copied  # squares of half-precision gradients underflow


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _rows(batch: Batch, rows: Tensor | slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in batch.items()}


def _num_classes(scores: Tensor) -> int:
    if scores.ndim != 2:
        raise NotApplicable(
            f"the model's scores have shape {tuple(scores.shape)} for one example; the Fisher information is defined "
            "here for classifiers, with scores of shape (examples, classes)."
        )
    return scores.shape[1]
