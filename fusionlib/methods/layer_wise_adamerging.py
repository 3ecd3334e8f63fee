"""Layer-wise AdaMerging: one learned coefficient per task and parameter tensor."""

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
    name="layer_wise_adamerging",
    title="Layer-wise AdaMerging",
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
    """As task-wise AdaMerging, with a coefficient for every parameter tensor (a weight, a bias) of every model.

    Args:
        data: of every task one batch per step is read, inputs only.
        init, lr, steps: where Adam starts, its learning rate (> 0), and how many steps it takes.
        batch_size: inputs per task and step.
        clamp: (low, high) to keep the coefficients in after each step; None leaves them free.
        split: whose inputs are read; "test" is what the paper does, and must be allowed by ``data``.
    Returns: the merged model, with ``coefficients`` (parameter name -> (T,)), ``trajectory``
        (steps + 1, parameters, T) and ``entropies`` (steps, T; nats), which are no part of its state dict.
    Raises: ParameterError, KeyMismatch, NonFiniteError.
    Source: Yang et al. 2024, "AdaMerging: Adaptive model merging for multi-task learning", section 3.2;
        the defaults are those of the authors' code.
    Deviates: as task-wise AdaMerging; "layer" means a parameter tensor there as here. Buffers, which have no
        gradient, are merged with ``init``.
    """
    adapted = minimise_entropy(
        pretrained,
        finetuned,
        data,
        by_layer=True,
        init=init,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        clamp=clamp,
        split=split,
    )
    last = dict(zip(adapted.names, adapted.trajectory[-1].clone(), strict=True))
    kept = {"coefficients": last, "trajectory": adapted.trajectory, "entropies": adapted.entropies}
    for name, value in kept.items():
        setattr(adapted.model, name, value)
    return adapted.model
