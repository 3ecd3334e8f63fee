"""Which values a parameter can have: by its default for a chapter's own, by meaning for the six that all share."""

from __future__ import annotations

from typing import Any

from fusionlib.bench.shared_parameters import SHARED, impossible
from fusionlib.core import ParameterError
from fusionlib.ops.values import bind

__all__ = ["SHARED", "impossible", "mismatch"]

_KINDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def mismatch(value: Any, default: Any) -> str | None:
    """What a value should be, judged by the default it replaces; None if it fits.

    An integer is fine where the default is a float, not the other way round. None is allowed only where it is
    the default, and there anything else is allowed too. Elements of a list are judged by the first of the default.
    """
    if default is None:
        return None
    kind = type(default) if type(default) in _KINDS else list
    try:
        bind(kind, value, "")
    except ParameterError:
        return _KINDS[kind]
    if kind is dict and not isinstance(value, dict):
        return _KINDS[kind]
    if isinstance(value, (list, tuple)) and default:
        wrong = next((text for item in value if (text := mismatch(item, default[0]))), None)
        return f"a list in which every element is {wrong}" if wrong else None
    return None
