"""The coefficients of a sum over models, and checks of single values for what is called without a signature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fusionlib.core import ParameterError
from fusionlib.ops.constraints import Above, AtLeast, AtMost, PerModel
from fusionlib.ops.values import bind


def model_weights(weights: Sequence[float], num_models: int, *, normalize: bool) -> list[float]:
    """One finite weight per model; non-negative and divided by their sum if ``normalize``.

    Raises: ParameterError, if their number is wrong, one is not finite, or they cannot be normalised.
    """
    values = _one_per_model("weights", weights, num_models)
    if not normalize:
        return values
    if min(values) < 0:
        raise ParameterError(
            f"weights = {values} holds a negative number, which a mean cannot have; "
            "use weights >= 0, or normalize=False for a plain weighted sum."
        )
    total = sum(values)
    if not 0 < total < float("inf"):
        raise ParameterError(
            f"weights = {values} sum to {total:g} and cannot be normalised; the sum must be finite, and greater than 0."
        )
    return [value / total for value in values]


def model_scales(scale: float | Sequence[float], num_models: int) -> list[float]:
    """One finite scale per model; a single number is meant for all.

    Raises: ParameterError, if their number is wrong or one is not finite.
    """
    read = bind(float | PerModel, scale, "scale", num_models=num_models)
    return _one_per_model("scale", read if isinstance(read, list) else [read] * num_models, num_models)


def _one_per_model(name: str, values: Sequence[float], num_models: int) -> list[float]:
    if num_models == 0:
        raise ParameterError("there is nothing to fuse: `finetuned` is empty; pass at least one model.")
    return bind(PerModel, values, name, num_models=num_models)


def in_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> float:
    """The value, if it is finite and lies in [low, high], or (low, high] if ``low_open``.

    Raises: ParameterError, with name, value and range, otherwise.
    """
    below = [AtMost(high)] if math.isfinite(high) else []
    return bind(Annotated[float, Above(low) if low_open else AtLeast(low), *below], value, name)


def finite(name: str, value: float) -> float:
    """The value, if it is neither NaN nor infinite.

    Raises: ParameterError, with name and value, otherwise.
    """
    return bind(float, value, name)


def whole(name: str, value: int, low: int) -> int:
    """The value, if it is an integer and not less than ``low``.

    Raises: ParameterError, with name, value and range, otherwise.
    """
    return bind(Annotated[int, AtLeast(low)], value, name)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """The value, if it is one of those allowed.

    Raises: ParameterError, with name, value and those allowed, otherwise.
    """
    return bind(Literal[*allowed], value, name)
