"""Task-wise AdaMerging: one learned coefficient per task, those with the most confident predictions."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

from torch import nn

from fusionlib.core import MethodCard
from fusionlib.ops.adapting import minimise_entropy
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.constraints import Count, Interval, Positive, Whole
from fusionlib.ops.values import checked

card = MethodCard(
    name="task_wise_adamerging",
    title="Task-wise AdaMerging",
    cite="Yang2024",
    kind="merge",
    takes="models",
    needs=frozenset({"inputs"}),
    needs_when=MappingProxyType({("split", "test"): "test-inputs"}),
    scope="model",
    identity=MappingProxyType({"steps": 0, "init": 1.0}),
    grid=MappingProxyType({"lr": (1e-3, 3e-3, 1e-2)}),
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    data: CalibrationData,
    init: float = 0.3,
    lr: Positive = 1e-3,
    steps: Whole = 500,
    batch_size: Count = 16,
    clamp: Interval | None = None,
    split: Literal["train", "val", "test"] = "val",
) -> nn.Module:
    """Task arithmetic whose T coefficients minimise the entropy of the predictions on unlabelled inputs.

    Args:
        data: of every task one batch per step is read, inputs only.
        init, lr, steps: where Adam starts, its learning rate (> 0), and how many steps it takes.
        batch_size: inputs per task and step.
        clamp: (low, high) to keep the coefficients in after each step; None leaves them free.
        split: whose inputs are read; "test" is what the paper does, and must be allowed by ``data``.
    Returns: the merged model, with ``coefficients`` (T,), ``trajectory`` (steps + 1, T) and ``entropies``
        (steps, T; nats, before each step): attributes that are no part of its state dict.
    Raises: ParameterError, KeyMismatch, NonFiniteError.
    Source: Yang et al. 2024, "AdaMerging: Adaptive model merging for multi-task learning", section 3.2;
        the defaults are those of the authors' code.
    Deviates: reads validation inputs and one batch per task and step; the authors read test inputs, two batches,
        and clamp to [0, 1] in the forward. FusionBench: no clamp, 1000 steps, one batch.
    """
    adapted = minimise_entropy(
        pretrained,
        finetuned,
        data,
        by_layer=False,
        init=init,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        clamp=clamp,
        split=split,
    )
    trajectory = adapted.trajectory[:, 0]
    kept = {"coefficients": trajectory[-1].clone(), "trajectory": trajectory, "entropies": adapted.entropies}
    for name, value in kept.items():
        setattr(adapted.model, name, value)
    return adapted.model
