"""Weighted ensemble: run every fine-tuned model, and let some of the answers count more than others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from fusionlib.core import MethodCard, ParameterError
from fusionlib.ops.coefficients import model_weights
from fusionlib.ops.constraints import PerModel
from fusionlib.ops.given import num_models
from fusionlib.ops.modules import Ensemble
from fusionlib.ops.values import checked

card = MethodCard(
    name="weighted_ensemble",
    title="Weighted Ensemble",
    cite="Perrone1993",
    kind="ensemble",
    takes="models",
    symmetric=False,
    identity={"weights": (1.0,)},
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    weights: PerModel,
    normalize: bool = True,
    average: Literal["logits", "probabilities", "features"] = "logits",
) -> Ensemble:
    """One module that holds all T fine-tuned models and returns the weighted sum of their outputs.

    Args:
        pretrained: not used; every method has the same two first arguments.
        weights: one number per fine-tuned model, in their order; at least 0 when normalised.
        normalize: divide the weights by their sum, so that the result is a mean.
        average: "logits" (after the head of the task in hand), "probabilities", or "features" (before it).
    Returns: an :class:`fusionlib.ops.modules.Ensemble`; it stores and runs T models, those of weight 0 too.
    Raises: ParameterError, for an unknown ``average``, or if the number of weights is wrong, one is negative or
        not finite, or they sum to 0; KeyMismatch, if the models differ in architecture.
    Source: Perrone and Cooper 1993 (the generalized ensemble method, GEM: a weighted sum of outputs).
    Deviates: the weights are the caller's; the paper computes them from the members' correlated errors.
        FusionBench takes equal weights where none are given; here that is ``simple_ensemble``.
    """
    shares = model_weights(weights, num_models(finetuned, "modules"), normalize=normalize)
    if average == "probabilities" and (min(shares) < 0 or sum(shares) == 0):
        raise ParameterError(
            f"weights = {shares} make no probability; with average='probabilities' use weights >= 0, not all 0."
        )
    return Ensemble(finetuned, average, shares)
