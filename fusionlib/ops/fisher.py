"""Diagonal Fisher information, from per-example gradients: how much each weight matters to a model's predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionlib.core import ParameterError, StateDict
from fusionlib.ops.modules import Batch

EXACT_CLASSES = 4  # up to so many, every label gets a backward pass of its own
CHUNK_BYTES = 64 << 20  # for the gradients of the examples that are taken at once

Logits = Callable[[nn.Module, Batch], Tensor]
Gradients = Callable[[StateDict, Batch, Tensor], StateDict]


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
        chunk_bytes: bound on the memory of per-example gradients; one example is always taken.
    Returns: parameter name -> float32 (or float64) tensor of its shape, 0 where no gradient arrives. Tied parameters
        are there once; buffers are not.
    Raises: ParameterError, for scores of another shape, or if there are no examples.
    """
    copied = _in_evaluation(model)
    parameters = {name: value.detach() for name, value in copied.named_parameters()}
    total = {name: torch.zeros_like(value, memory_format=torch.contiguous_format) for name, value in parameters.items()}
    size = sum(value.numel() * value.element_size() for value in parameters.values())
    chunk = max(1, chunk_bytes // max(1, size))
    seen = 0
    # Fused attention cannot be differentiated example by example.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch, labels in batches:
            batch = {name: _widened(value) for name, value in batch.items()}
            classes = _num_classes(logits(copied, _rows(batch, slice(0, 1))))
            count = len(next(iter(batch.values())))
            seen += count
            gradients = per_example_gradients(copied, logits, own=labels is None)
            for rows, directions in _directions(count, classes, labels, generator, exact_classes, chunk):
                inputs = _rows(batch, rows)
                found = gradients(parameters, inputs, directions.to(next(iter(inputs.values())).device))
                for name, value in found.items():
                    total[name].add_(value.square_().sum(dim=0))
    if not seen:
        raise ParameterError("the Fisher information needs at least one example, and `batches` holds none.")
    return {name: value.div_(seen) for name, value in total.items()}


def per_example_gradients(model: nn.Module, logits: Logits, *, own: bool) -> Gradients:
    """A function from parameters, a batch and directions (B, classes) to gradients, (B, *shape) for every parameter.

    The gradient is that of the direction's product with log p, or with sqrt(p) log p, p held fixed, for ``own``.
    Models that cannot be vectorised (they branch on values) are taken one example after the other.
    """
    wrapped = _Scores(model, logits)

    def score(parameters: StateDict, example: Batch, direction: Tensor) -> Tensor:
        state = {f"model.{name}": value for name, value in parameters.items()}
        scores = functional_call(wrapped, state, ({name: value[None] for name, value in example.items()},))
        log_p = scores[0].log_softmax(dim=-1)
        weight = log_p.detach().div(2).exp() if own else 1.0
        return (log_p * weight * direction.to(log_p)).sum()

    one = grad(score)
    every = vmap(one, in_dims=(None, 0, 0))

    def loop(parameters: StateDict, batch: Batch, directions: Tensor) -> StateDict:
        rows = range(len(directions))
        found = [one(parameters, {n: v[i] for n, v in batch.items()}, directions[i]) for i in rows]
        return {name: torch.stack([gradient[name] for gradient in found]) for name in parameters}

    def gradients(parameters: StateDict, batch: Batch, directions: Tensor) -> StateDict:
        try:
            return every(parameters, dict(batch), directions)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            return loop(parameters, batch, directions)

    return gradients


class _Scores(nn.Module):
    """Makes a call of ``logits`` the forward of a module, as ``functional_call`` wants it."""

    def __init__(self, model: nn.Module, logits: Logits):
        super().__init__()
        self.model = model
        self.logits = logits

    def forward(self, batch: Batch) -> Tensor:
        return self.logits(self.model, batch)


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
        raise ParameterError(
            f"the model's scores have shape {tuple(scores.shape)} for one example; the Fisher information is defined "
            "here for classifiers, with scores of shape (examples, classes)."
        )
    return scores.shape[1]
