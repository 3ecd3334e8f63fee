"""Gram matrices: what a linear layer's inputs look like on a task, as one matrix per layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.ops.modules import Batch

COLUMNS = 256  # of a Gram matrix that are computed at once


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """(name, layer, transposed) of every layer that multiplies its input by a matrix.

    ``transposed`` is True for the ``Conv1D`` of GPT-2, whose weight is stored (inputs, outputs).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module, False
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            yield name, module, True


@torch.no_grad()
def gram_matrices(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """X^T X / (number of tokens) of every linear layer's inputs, by one forward pass per batch.

    Args:
        model: is run in evaluation mode, and left as it was.
        batches: keyword arguments of its forward. Where a batch has an ``attention_mask`` of shape (B, L), inputs of
            shape (B, L, ...) are counted without the padding.
    Returns: layer name -> float32 (or float64) matrix (inputs, inputs); layers that were never called are left out.
    """
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    mask: list[Tensor | None] = [None]

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            rows = _rows(next(iter((*arguments, *named.values()))), mask[0])
            rows = rows if rows.dtype == torch.float64 else rows.float()
            if name not in sums:
                sums[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
            _add_lower(sums[name], rows)
            tokens[name] = tokens.get(name, 0) + len(rows)

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer, _ in linear_layers(model)
    ]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for batch in batches:
            mask[0] = batch.get("attention_mask")
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return {name: _mirrored(gram).div_(max(1, tokens[name])) for name, gram in sums.items()}


def _rows(inputs: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and inputs.shape[:-1] == mask.shape:
        return inputs[mask.bool()]
    return inputs.reshape(-1, inputs.shape[-1])


def _add_lower(total: Tensor, rows: Tensor) -> None:
    """Adds rows^T rows, by columns and from the diagonal down: the rest follows by symmetry."""
    for start in range(0, len(total), COLUMNS):
        columns = slice(start, start + COLUMNS)
        total[start:, columns].addmm_(rows[:, start:].T, rows[:, columns])


def _mirrored(lower: Tensor) -> Tensor:
    return lower.tril_().add_(lower.tril(-1).T)


def solve_symmetric(matrix: Tensor, right: Tensor) -> tuple[Tensor, bool]:
    """The solution of ``matrix @ x = right`` for a positive semi-definite matrix, and whether it was unique.

    A singular system, also one that is singular but for rounding, gets the solution of least squares with the
    smallest norm.
    """
    eps = torch.finfo(matrix.dtype).eps
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    # where a pivot should be 0, rounding seldom leaves more than this
    if int(info) == 0 and bool(pivots.min() > 4 * len(matrix) ** 0.5 * eps * pivots.max()):
        return torch.cholesky_solve(right, factor), True
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values[-1].clamp(min=0) * len(values) * eps
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right)), False
