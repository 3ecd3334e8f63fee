"""Weighted averaging: a mean of the fine-tuned weights in which each model counts as much as it should."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusionlib.core import MethodCard, StateDict
from fusionlib.ops.coefficients import model_weights
from fusionlib.ops.constraints import PerModel
from fusionlib.ops.given import num_models
from fusionlib.ops.streaming import Block, stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="weighted_average",
    title="Weighted Averaging",
    cite="Matena2022",
    kind="merge",
    scope="element",
    symmetric=False,
    identity={"weights": (1.0,)},
)


@checked
def fuse(
    pretrained: StateDict, finetuned: Sequence[StateDict], *, weights: PerModel, normalize: bool = True
) -> StateDict:
    """The weighted mean of the fine-tuned models.

    Args:
        weights: one number per fine-tuned model, in their order; at least 0 when normalised.
        normalize: divide the weights by their sum, so that the result is a mean. Without it they are used
            as given: a sum other than 1 then rescales the whole network.
    Returns: a state dict with the keys, shapes and dtypes of ``pretrained``.
    Raises: ParameterError, if the number of weights is wrong, one is negative or not finite, or they sum to 0;
        KeyMismatch, if a fine-tuned state dict has other keys or shapes; NonFiniteError, on NaN or Inf.
    Source: Matena and Raffel 2022, section 2.1 (isotropic merging with model weights).
    Deviates: nothing. (mergekit's ``linear`` is the same, with ``normalize`` on by default too.)
    """
    shares = model_weights(weights, num_models(finetuned), normalize=normalize)

    def weighted(block: Block) -> Tensor:
        total = torch.mul(block.models[0], shares[0], out=block.room)
        for share, model in zip(shares[1:], block.models[1:], strict=True):
            total.add_(model, alpha=share)
        return total

    return stream(pretrained, finetuned, weighted, reads_base=False)
