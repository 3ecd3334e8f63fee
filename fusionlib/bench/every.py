"""Every method on one suite: a record of each that applies, and a sentence for each that does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionlib import methods
from fusionlib.bench.labels import parameters_of
from fusionlib.bench.run import measured
from fusionlib.bench.search import tune
from fusionlib.core import NotApplicable, Record
from fusionlib.zoo.suite import Suite


def run_every(
    suite: Suite,
    *,
    limit: int | None = None,
    tuned: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    choice_limit: int | None = None,
) -> tuple[list[Record], dict[str, str]]:
    """Measures all methods of the library on the test split.

    Args:
        limit: only the first test examples of each task; None means all.
        tuned: method -> hyper-parameter -> values among which validation data chooses.
        settings: method -> hyper-parameters that stay; where neither names one, it has its default.
        choice_limit: as ``limit``, of the validation examples.
    Returns: the records in the order of ``methods.names()``; and method -> why it has none: it is not defined for
        this suite, or needs a value that nobody gave.
    Raises: UnknownName, if ``tuned`` or ``settings`` names something else; ParameterError for a value.
    """
    chosen, given = dict(tuned or {}), dict(settings or {})
    for name in (*chosen, *given):
        methods.get(name)
    records: list[Record] = []
    without: dict[str, str] = {}
    for name in methods.names():
        over, fixed = chosen.get(name, {}), dict(given.get(name, {}))
        needed = [key for key, value in parameters_of(name).items() if value == "required"]
        open_ = [key for key in needed if key not in over and key not in fixed]
        if open_:
            without[name] = f"needs a value for {', '.join(map(repr, open_))}, which has no default."
            continue
        try:
            best = tune(name, suite, over=over, limit=choice_limit, **fixed) if over else fixed
            records.append(measured(name, suite, "test", limit, "val" if over else None, best)[0])
        except NotApplicable as error:
            without[name] = str(error)
    return records, without
