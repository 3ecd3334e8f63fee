"""Learning merging coefficients from unlabelled inputs: what the two forms of AdaMerging share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionlib.core import NonFiniteError, ParameterError
from fusionlib.ops.blending import Blend
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.coefficients import in_range
from fusionlib.ops.entropy import mean_entropy
from fusionlib.ops.given import check_modules
from fusionlib.ops.guided import check_tasks
from fusionlib.ops.modules import Batch


@dataclass(frozen=True)
class Adapted:
    """What came out of it.

    Attributes:
        model: the merged model at the last coefficients.
        names: of the parameters with coefficients of their own, in the order of the rows.
        trajectory: the coefficients before the first and after every step, (steps + 1, rows, T), on the CPU.
        entropies: mean entropy of every task's batch before each step, in nats, (steps, T), on the CPU.
    """

    model: nn.Module
    names: list[str]
    trajectory: Tensor
    entropies: Tensor


def minimise_entropy(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    data: CalibrationData,
    *,
    by_layer: bool,
    init: float,
    lr: float,
    steps: int,
    batch_size: int,
    clamp: Sequence[float] | None,
    split: str,
) -> Adapted:
    """Adam on the coefficients of the task vectors; the loss sums the mean entropies of one batch of every task.

    Single values are taken as they are: the signatures of the methods say what is allowed.

    Raises: ParameterError, KeyMismatch, NonFiniteError.
    """
    limits = _limits(init, clamp)
    check_modules(pretrained, finetuned)
    check_tasks(len(finetuned), data)
    blend = Blend(pretrained, finetuned, init, by_layer=by_layer)
    streams = [data.stream(task, split, batch_size) for task in data.tasks]
    table = blend.coefficients
    optimizer = torch.optim.Adam([table], lr=lr)
    path, entropies = [table.clone()], []
    for _ in range(steps):
        entropies.append(step(blend, data, [next(batches) for batches in streams], optimizer, limits))
        path.append(table.clone())
    if not bool(torch.isfinite(table).all()):
        raise NonFiniteError(
            f"after {steps} steps the coefficients are not finite; the predictions had become NaN or Inf on the way. "
            f"Use a smaller lr than {lr:g}, or clamp=(0, 1)."
        )
    kept = torch.stack(entropies).cpu() if entropies else torch.zeros(0, len(finetuned))
    return Adapted(blend.finish(), blend.names, torch.stack(path).cpu(), kept)


def step(
    blend: Blend,
    data: CalibrationData,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    limits: tuple[float, float] | None = None,
) -> Tensor:
    """One step of the optimizer on ``blend.coefficients``, clamped to ``limits``; the model follows.

    Returns: the mean entropy of every batch before the step, (T,).
    """
    entropies = entropy_backward(blend, data, batches)
    blend.coefficients.grad = blend.gradient()
    optimizer.step()
    if limits is not None:
        blend.coefficients.clamp_(*limits)
    blend.apply()
    return entropies


def entropy_backward(blend: Blend, data: CalibrationData, batches: Sequence[Batch]) -> Tensor:
    """Adds the gradient of every task's mean entropy to the model's parameters; returns the entropies, (T,).

    One task after the other, so that the activations of one batch are held at a time.
    """
    found = []
    parameters = list(blend.model.parameters())
    with torch.enable_grad():
        for task, batch in zip(data.tasks, batches, strict=True):
            loss = mean_entropy(data.logits(task, blend.model, batch))
            loss.backward(inputs=parameters)
            found.append(loss.detach())
    return torch.stack(found)


def _limits(init: float, clamp: Sequence[float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    low, high = clamp
    if not low < high:
        raise ParameterError(f"clamp = {clamp!r} is empty; the first number must be the smaller one.")
    in_range("init", init, low, high)
    return low, high
