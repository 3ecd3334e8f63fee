"""Max-model predictor: for every class, the highest score that any of the models gives it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from torch import nn

from fusionlib.core import MethodCard
from fusionlib.ops.modules import MaxEnsemble
from fusionlib.ops.values import checked

card = MethodCard(
    name="max_model_predictor",
    title="Max-Model Predictor",
    cite="Wu2019",
    kind="ensemble",
    takes="models",
    identity=MappingProxyType({"center": False}),
    grid=MappingProxyType({"center": (False, True)}),
)


@checked
def fuse(pretrained: nn.Module, finetuned: Sequence[nn.Module], *, center: bool = False) -> MaxEnsemble:
    """One module that holds all T fine-tuned models; a class scores what its strongest advocate gives it.

    The predicted class is that of the largest logit of all, whichever member it comes from. That member need
    not be the one with the largest *probability*: softmax forgets a constant added to all logits, and a
    maximum over members does not.

    Args:
        pretrained: not used; every method has the same two first arguments.
        center: take each member's mean over the classes off its logits first, so that they can be compared.
    Returns: an :class:`fusionlib.ops.modules.MaxEnsemble`; it stores and runs T models.
    Raises: ParameterError, for no models; KeyMismatch, if they differ in architecture.
    Source: Wu, Liu and Zhou 2019 (the max-model predictor, from which their method starts).
    Deviates: all members score all classes of the task in hand; in the paper each knows classes of its own,
        and their scores are calibrated on exchanged examples first (not done here). ``center`` is ours.
    """
    return MaxEnsemble(finetuned, center=center)
