"""The hyper-parameters of a method: all of them, with its defaults, and no others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fusionlib import methods
from fusionlib.core import FusionMethod, ParameterError, suggest

Method = str | ModuleType | FusionMethod


def complete(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All hyper-parameters of the method, defaults included.

    Raises: ParameterError for one that is unknown (naming the close match) or missing.
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
    defaults = {name: parameter.default for name, parameter in takes.items()}
    return {name: _as_default(given.get(name, default), default) for name, default in defaults.items()}


def _as_default(value: Any, default: Any) -> Any:
    """1 where the default is 1.0 is the same question, and so must be the same number."""
    return float(value) if type(value) is int and isinstance(default, float) else value
