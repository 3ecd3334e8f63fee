"""Simple ensemble: run every fine-tuned model and average what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from fusionlib.core import MethodCard
from fusionlib.ops.modules import Ensemble
from fusionlib.ops.values import checked

card = MethodCard(
    name="simple_ensemble",
    title="Simple Ensemble",
    cite="Lakshminarayanan2017",
    kind="ensemble",
    takes="models",
    identity={},
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    average: Literal["logits", "probabilities", "features"] = "logits",
) -> Ensemble:
    """One module that holds all T fine-tuned models and averages their outputs, each counting the same.

    Args:
        pretrained: not used; every method has the same two first arguments.
        average: "logits" (after the head of the task in hand), "probabilities", or "features" (before it).
    Returns: an :class:`fusionlib.ops.modules.Ensemble`; it stores and runs T models.
    Raises: ParameterError, for no models or an unknown ``average``; KeyMismatch, for other architectures.
    Source: Dietterich 2000; Lakshminarayanan et al. 2017, section 2.4 (which average probabilities).
    Deviates: averages logits by default. FusionBench's CLIP rows average pooled features under one head.
    """
    return Ensemble(finetuned, average)
