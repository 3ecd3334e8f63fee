"""What methods that take modules do before and after their own work: check them, and put weights into a new one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from fusionlib.core import ParameterError, StateDict
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.statedict import check_compatible
from fusionlib.ops.streaming import check_finite


def checked_states(
    pretrained: nn.Module, finetuned: Sequence[nn.Module], data: CalibrationData | None = None
) -> tuple[StateDict, list[StateDict]]:
    """The state dicts of the models, if they can be fused and, where data are given, there is a task's for each.

    Raises: KeyMismatch, NonFiniteError, from the weights; ParameterError, if the numbers of models and tasks differ.
    """
    base, states = pretrained.state_dict(), [model.state_dict() for model in finetuned]
    check_compatible(base, states)
    if data is not None and len(states) != len(data.tasks):
        raise ParameterError(
            f"{len(states)} fine-tuned models were given with the data of {len(data.tasks)} tasks "
            f"({', '.join(data.tasks)}); give one task per model, in the same order."
        )
    for name, state in (("the pretrained model", base), *((f"finetuned[{i}]", s) for i, s in enumerate(states))):
        for key, tensor in state.items():
            check_finite(name, key, tensor)
    return base, states


def with_weights(pretrained: nn.Module, state: StateDict) -> nn.Module:
    """A new module like ``pretrained`` with these weights, in evaluation mode, without gradients."""
    model = copy.deepcopy(pretrained)
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
    return model.eval()
