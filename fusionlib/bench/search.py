"""Trying hyper-parameters: ``sweep`` to look at them, ``tune`` to choose, on validation data only.

A best value at the edge of what was tried is no optimum: both say so, and ``tune`` goes on where a trial is cheap.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlib import methods
from fusionlib.bench.edges import edges
from fusionlib.bench.hyperparameters import Method
from fusionlib.bench.log import logger
from fusionlib.bench.run import measured
from fusionlib.core import MethodCard, NegativeVariance, ParameterError, Record
from fusionlib.zoo.suite import Suite

FURTHER = 4  # values that `tune` tries beyond what it was given, at most


def grid(start: float, stop: float, num: int) -> list[float]:
    """``num`` evenly spaced numbers from ``start`` to ``stop``, both included, rounded to 6 digits.

    Raises: ParameterError, if ``num`` is less than 2.
    """
    if num < 2:
        raise ParameterError(f"num = {num!r} points make no grid; use at least 2.")
    return [round(start + (stop - start) * index / (num - 1), 6) for index in range(num)]


def sweep(
    method: Method,
    suite: Suite,
    over: Mapping[str, Sequence[Any]],
    *,
    split: str = "val",
    limit: int | None = None,
    **fixed: Any,
) -> list[Record]:
    """A record for every combination of the values in ``over``, in their order, the last one fastest.

    Combinations that take a BatchNorm's variance below 0 are left out, and a line on stderr says why.
    A line in the log says so where, of three or more validated values, the best is the last one on its side.

    Args:
        over: hyper-parameter -> values to try.
        split: validation unless said otherwise: what is looked at on test data must not be chosen by it.
        fixed: hyper-parameters that stay.
    Raises: ParameterError, if ``over`` is empty or names a fixed or unknown hyper-parameter; NegativeVariance, if
        all combinations were left out.
    """
    found = _swept(method, suite, over, split, limit, fixed)
    if split == "val":
        _say_edges(methods.get(method).card.name, found, at_least=3)
    return found


def _swept(
    method: Method, suite: Suite, over: Mapping[str, Sequence[Any]], split: str, limit: int | None, fixed: Mapping
) -> list[Record]:
    name = methods.get(method).card.name
    if not over or not all(len(values) for values in over.values()):
        raise ParameterError(f"there is nothing to try for {name}: `over` = {dict(over)!r} needs values.")
    both = sorted(over.keys() & fixed.keys())
    if both:
        raise ParameterError(f"{', '.join(both)} is given both in `over` and as a fixed value; give it once.")
    tried, refused = [], None
    for values in itertools.product(*over.values()):
        point = dict(zip(over, values, strict=True))
        try:
            tried.append(measured(method, suite, split, limit, None, {**fixed, **point}))
        except NegativeVariance as error:
            refused = error
            logger.info("%s with %s is left out: %s", name, ", ".join(f"{k}={v}" for k, v in point.items()), error)
    if refused and not tried:
        raise refused
    hits = sum(hit for _, hit in tried)
    if hits:
        logger.info("%s: %d records read, %d measured", name, hits, len(tried) - hits)
    return [record for record, _ in tried]


def tune(
    method: Method,
    suite: Suite,
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    limit: int | None = None,
    **fixed: Any,
) -> dict[str, Any]:
    """The hyper-parameters with the best average accuracy on the validation split; of equals the first.

    ``fl.run(method, suite, selected_on="val", **fl.tune(method, suite))`` measures the choice on test data.
    If the best value of a number is the last one tried, a merge of weights alone is tried further out, at most
    ``FURTHER`` times and never beyond what the method allows; a line in the log says what came of it.

    Args:
        over: what to try; the card's ``grid`` if absent.
        fixed: hyper-parameters that stay; they are returned too.
    Raises: ParameterError, if there is nothing to try.
    """
    card = methods.get(method).card
    tried = {name: values for name, values in card.grid.items() if name not in fixed} if over is None else over
    if not tried:
        raise ParameterError(f"{card.name} has no hyper-parameters to tune; call run() without.")
    found = _swept(method, suite, tried, "val", limit, fixed)
    if _is_cheap(card):
        found = _further(method, suite, found, limit)
    _say_edges(card.name, found)
    best = max(found, key=lambda record: record.average)
    return {**fixed, **{name: best.hyperparameters[name] for name in tried}}


def _is_cheap(card: MethodCard) -> bool:
    """Whether one more trial costs little beside those that were made: no inputs are looked at, one model comes out."""
    return card.kind == "merge" and card.takes == "weights" and not card.needs


def _further(method: Method, suite: Suite, found: Sequence[Record], limit: int | None) -> list[Record]:
    """The records with those of values further out, until the best of them is inside or the next value is refused."""
    found, further = list(found), []
    for _ in range(FURTHER):
        best = max(found, key=lambda record: record.average)
        edge = next(iter(edges(found)), None)
        if edge is None:
            break
        given = {**best.hyperparameters, edge.name: edge.beyond}
        try:
            found.append(measured(method, suite, "val", limit, None, given)[0])
        except (ParameterError, NegativeVariance):
            break
        further.append(f"{edge.name} {edge.beyond:g}")
    if further:
        name = methods.get(method).card.name
        logger.info("%s: the best was the last value tried, so these were tried too: %s", name, ", ".join(further))
    return found


def _say_edges(name: str, found: Sequence[Record], at_least: int = 2) -> None:
    """One line in the log for every hyper-parameter whose best value has none beyond it."""
    for edge in edges(found):
        if edge.tried >= at_least:
            logger.info("%s: %s; a better one may lie beyond", name, edge)
