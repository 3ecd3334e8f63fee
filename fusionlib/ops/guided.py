"""What methods that take modules do before and after their own work: check them, and put weights into a new one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from fusionlib.core import ParameterError, StateDict
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.finite import check_inputs_finite, check_module_finite, check_module_result, check_result
from fusionlib.ops.given import BASE, check_module, check_modules, check_state
from fusionlib.ops.statedict import check_compatible
from fusionlib.ops.variances import check_variances

_NO_DATA: Any = object()


def checked_states(
    pretrained: nn.Module, finetuned: Sequence[nn.Module], data: CalibrationData = _NO_DATA
) -> tuple[StateDict, list[StateDict]]:
    """The state dicts of the models, if they can be fused and, where data are given, there is a task's for each.

    Raises: KeyMismatch, NonFiniteError, from the weights; ParameterError, if these are no modules, no data, or the
        numbers of models and tasks differ.
    """
    check_modules(pretrained, finetuned)
    base, states = pretrained.state_dict(), [model.state_dict() for model in finetuned]
    check_compatible(base, states)
    if data is not _NO_DATA:
        check_tasks(len(states), data)
    check_inputs_finite(base, states)
    return base, states


def check_tasks(num_models: int, data: CalibrationData) -> None:
    """Raises ParameterError unless there is the data of one task per model."""
    if not isinstance(data, CalibrationData):
        raise ParameterError(
            f"data is of type {type(data).__name__}; a CalibrationData is needed, with one task per model, as "
            "fl.run and fl.fuse make of a suite."
        )
    if num_models != len(data.tasks):
        raise ParameterError(
            f"{num_models} fine-tuned models were given with the data of {len(data.tasks)} tasks "
            f"({', '.join(data.tasks)}); give one task per model, in the same order."
        )


def check_one(pretrained: nn.Module) -> None:
    """What a method that enlarges one model asks of it: a module of real, finite numbers.

    Raises: ParameterError, NotApplicable, NonFiniteError.
    """
    check_module(BASE, pretrained)
    check_state(BASE, pretrained.state_dict())
    check_module_finite(BASE, pretrained)


def with_weights(pretrained: nn.Module, state: StateDict) -> nn.Module:
    """A new module like ``pretrained`` with these weights, in evaluation mode, without gradients.

    Raises: NonFiniteError, NegativeVariance, naming the tensor, from the weights.
    """
    check_result(state, pretrained.state_dict())
    check_variances(state)
    model = copy.deepcopy(pretrained)
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
    return model.eval()


def checked_result(model: nn.Module, pretrained: nn.Module) -> nn.Module:
    """The model that a mix returns, if it holds no NaN, and nothing infinite but constants.

    Raises: NonFiniteError, naming the tensor.
    """
    check_module_result(model, pretrained)
    return model
