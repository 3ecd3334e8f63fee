"""Reading the numbers a user gives per model, with errors that finish the sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusionlib.core import ParameterError


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
    if total == 0:
        raise ParameterError(f"weights = {values} sum to 0 and cannot be normalised; at least one must be > 0.")
    return [value / total for value in values]


def model_scales(scale: float | Sequence[float], num_models: int) -> list[float]:
    """One finite scale per model; a single number is meant for all.

    Raises: ParameterError, if their number is wrong or one is not finite.
    """
    if isinstance(scale, (int, float)):
        scale = [scale] * num_models
    return _one_per_model("scale", scale, num_models)


def _one_per_model(name: str, values: Sequence[float], num_models: int) -> list[float]:
    listed = [float(value) for value in values]
    if num_models == 0:
        raise ParameterError("there is nothing to fuse: `finetuned` is empty; pass at least one model.")
    if len(listed) != num_models:
        raise ParameterError(
            f"{name} has {len(listed)} numbers for {num_models} fine-tuned models; give one per model, in order."
        )
    if not all(math.isfinite(value) for value in listed):
        raise ParameterError(f"{name} = {listed} holds a number that is not finite; all must be.")
    return listed


def in_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> float:
    """The value, if it lies in [low, high], or (low, high] if ``low_open``.

    Raises: ParameterError, with name, value and range, otherwise.
    """
    if not (low < value if low_open else low <= value) or not value <= high:
        bracket = "(" if low_open else "["
        raise ParameterError(f"{name} = {value!r} is out of range; allowed: {bracket}{low:g}, {high:g}].")
    return float(value)


def finite(name: str, value: float) -> float:
    """The value, if it is neither NaN nor infinite.

    Raises: ParameterError, with name and value, otherwise.
    """
    if not math.isfinite(value):
        raise ParameterError(f"{name} = {value!r} is not a finite number; use one that is.")
    return float(value)


def whole(name: str, value: int, low: int) -> int:
    """The value, if it is an integer and not less than ``low``.

    Raises: ParameterError, with name, value and range, otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ParameterError(f"{name} = {value!r} is not allowed; it must be an integer, {low} or greater.")
    return value


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """The value, if it is one of those allowed.

    Raises: ParameterError, with name, value and those allowed, otherwise.
    """
    if value not in allowed:
        raise ParameterError(f"{name} = {value!r} is not known; allowed: {', '.join(map(repr, allowed))}.")
    return value
