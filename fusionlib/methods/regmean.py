"""RegMean: each linear layer of the merged model comes as near as it can to what every model's own layer answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated

import torch
from torch import Tensor, nn

from fusionlib.core import MethodCard, NonFiniteError
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.constraints import AtLeast, AtMost, Count, NotNegative
from fusionlib.ops.gram import gram_matrices, linear_layers, solve_symmetric
from fusionlib.ops.guided import checked_states, with_weights
from fusionlib.ops.statedict import tied_names
from fusionlib.ops.streaming import mean, stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="regmean",
    title="RegMean",
    cite="Jin2023",
    kind="merge",
    takes="models",
    needs=frozenset({"inputs"}),
    scope="tensor",
    identity={},
    grid=MappingProxyType({"off_diagonal": (0.5, 0.9, 0.95, 0.99, 1.0)}),
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    data: CalibrationData,
    num_examples: Count = 256,
    batch_size: Count = 32,
    off_diagonal: Annotated[float, AtLeast(0), AtMost(1)] = 0.95,
    ridge: NotNegative = 0.0,
    double: bool = False,
) -> nn.Module:
    """Solve one least-squares problem per linear layer, on the inputs that each model's own task gives it.

    Args:
        data: unlabelled training inputs of every task, in the order of ``finetuned``.
        num_examples: drawn per task.
        batch_size: examples per forward pass.
        off_diagonal: factor on the off-diagonal entries of the Gram matrices, in [0, 1]; 0 ignores correlations.
        ridge: adds ridge x mean of the diagonal to the diagonal, 0 or greater.
        double: solve in float64.
    Returns: a new module of the pretrained kind. Biases, norms, embeddings and tied weights are averaged.
    Raises: ParameterError, KeyMismatch, NonFiniteError. Warns where a layer's system is singular.
    Source: Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", equation 2, section 4.1.
    Deviates: solves for the difference from the average, which is the same where the solution is unique and else stays
        at the average. Gram matrices are means over tokens, as in the authors' code (the paper sums), and without
        padding. The factor is 0.9 in the paper, 0.1, 0.5 and 0.95 in public code.
    """
    base, states = checked_states(pretrained, finetuned, data)
    fused = stream(base, states, mean, reads_base=False)
    ties = tied_names(base)
    alone = base.keys() - {*ties, *ties.values()}
    layers = {_key(name): flip for name, _, flip in linear_layers(pretrained) if _key(name) in alone}
    systems: dict[str, tuple[Tensor, Tensor]] = {}
    for task, model, state in zip(data.tasks, finetuned, states, strict=True):
        inputs = data.draw(task, "train", num_examples, batch_size)
        for layer, gram in gram_matrices(model, inputs).items():
            key = _key(layer)
            if key not in layers:
                continue
            if not bool(gram.isfinite().all()):
                raise NonFiniteError(
                    f"what layer {layer!r} receives on task {task!r} holds NaN or Inf; check the inputs of this "
                    "task, or give the models in float32."
                )
            gram = _shrunk(gram.double() if double else gram, off_diagonal, ridge)
            change = state[key].to(gram.dtype) - fused[key].to(gram.dtype)
            right = gram @ (change if layers[key] else change.T)
            left, total = systems.get(key, (0, 0))
            systems[key] = left + gram, total + right
    for key, (left, right) in systems.items():
        if not bool(left.isfinite().all() and right.isfinite().all()):
            raise NonFiniteError(
                f"the system of equations of {key!r} holds NaN or Inf though all inputs are finite; use a smaller "
                f"ridge than {ridge:g}, or double=True."
            )
        change, unique = solve_symmetric(left, right)
        if not unique:
            warnings.warn(
                f"the inputs of {key!r} do not determine its weights; the nearest to the average was taken. "
                "More examples, ridge > 0 or off_diagonal < 1 help.",
                stacklevel=2,
            )
        fused[key].copy_(fused[key].to(change.dtype) + (change if layers[key] else change.T))
    return with_weights(pretrained, fused)


def _key(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"  # the model itself may be a linear layer


def _shrunk(gram: Tensor, off_diagonal: float, ridge: float) -> Tensor:
    diagonal = gram.diagonal()
    return off_diagonal * gram + torch.diag((1 - off_diagonal) * diagonal + ridge * diagonal.mean())
