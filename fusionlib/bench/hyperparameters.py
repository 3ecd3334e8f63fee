"""The hyper-parameters of a method: all of them, with its defaults, and no others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fusionlib import methods
from fusionlib.core import FusionMethod, ParameterError, suggest
from fusionlib.ops.values import allowed, bind

Method = str | ModuleType | FusionMethod


def complete(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All hyper-parameters of the method, defaults included, as plain Python values.

    1 where a number is meant is 1.0, and a tensor or NumPy's number is Python's: one question, one record.

    Raises: ParameterError for one that is unknown (naming the close match), missing, or not as the signature says.
    """
    known = methods.get(method)
    title = known.card.name
    takes = {
        name: parameter
        for name, parameter in inspect.signature(known.fuse).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "data"
    }
    for name in given:
        if name not in takes:
            raise ParameterError(f"{title} has no hyper-parameter {name!r}.{suggest(name, takes)}")
    missing = [n for n, p in takes.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        raise ParameterError(f"{title} needs a value for {', '.join(map(repr, missing))}, which has no default.")
    annotations = allowed(known.fuse)
    return {name: _read(name, given.get(name, p.default), p.default, annotations[name]) for name, p in takes.items()}


def _read(name: str, value: Any, default: Any, annotation: Any) -> Any:
    if annotation is Any:  # a method of the user's own without annotations: the default says what is meant
        return float(value) if type(value) is int and isinstance(default, float) else value
    try:
        return bind(annotation, value, name)
    except ParameterError:
        if value is default:  # ``low: float = None`` says that None is allowed, too
            return value
        raise
