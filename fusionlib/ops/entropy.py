"""How unsure predictions are: a loss that needs inputs and no labels."""

from __future__ import annotations

import torch
from torch import Tensor

from fusionlib.core import NotApplicable


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean over the examples of the Shannon entropy of softmax(logits), in nats: a scalar in [0, log classes].

    Args:
        logits: shape (B, classes); -inf means a class that is ruled out. Half precision is computed in float32.
    Raises: NotApplicable, for another shape: numbers that are no scores of classes, such as depths, have no entropy.
    """
    if logits.ndim != 2:
        raise NotApplicable(
            f"the model's answers have shape {tuple(logits.shape)}; entropy is defined here for scores of classes, of "
            "shape (examples, classes). Depths and normals are no scores, and have none. Use a method that does not "
            "minimise entropy."
        )
    log_chances = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    # A class without any chance adds 0, yet 0 * -inf is NaN; the largest finite number in its place is harmless.
    finite = log_chances.clamp(min=torch.finfo(log_chances.dtype).min)
    return -(log_chances.exp() * finite).sum(dim=-1).mean()
