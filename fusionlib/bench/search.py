"""Trying hyper-parameters: ``sweep`` to look at them, ``tune`` to choose, on validation data only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlib import methods
from fusionlib.bench.hyperparameters import Method
from fusionlib.bench.log import logger
from fusionlib.bench.run import measured
from fusionlib.core import NegativeVariance, ParameterError, Record
from fusionlib.zoo.suite import Suite


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

    Args:
        over: hyper-parameter -> values to try.
        split: validation unless said otherwise: what is looked at on test data must not be chosen by it.
        fixed: hyper-parameters that stay.
    Raises: ParameterError, if ``over`` is empty or names a fixed or unknown hyper-parameter; NegativeVariance, if
        all combinations were left out.
    """
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

    Args:
        over: what to try; the card's ``grid`` if absent.
        fixed: hyper-parameters that stay; they are returned too.
    Raises: ParameterError, if there is nothing to try.
    """
    card = methods.get(method).card
    tried = {name: values for name, values in card.grid.items() if name not in fixed} if over is None else over
    if not tried:
        raise ParameterError(f"{card.name} has no hyper-parameters to tune; call run() without.")
    best = max(sweep(method, suite, tried, split="val", limit=limit, **fixed), key=lambda record: record.average)
    return {**fixed, **{name: best.hyperparameters[name] for name in tried}}
