"""Whether a search ended on the edge of what it tried: then a better value may lie beyond, and that has to be said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fusionlib import methods
from fusionlib.bench.batch_norm import split_choice
from fusionlib.bench.hyperparameters import complete
from fusionlib.core import ParameterError, Record

UNORDERED = ("seed",)  # numbers of which none is further out than another


@dataclass(frozen=True)
class Edge:
    """A hyper-parameter whose best value is the last one on its side.

    Attributes:
        name: of the hyper-parameter.
        value: the best one.
        side: "highest" or "lowest" of what was tried.
        tried: how many values were tried.
        beyond: the next value outward, which the method allows.
    """

    name: str
    value: float
    side: str
    tried: int
    beyond: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:g} is the {self.side} that was tried"


def edges(tried: Sequence[Record]) -> list[Edge]:
    """The hyper-parameters of the best record that have the last value tried, though the method allows others beyond.

    A value counts as the last if none further inside does as well, all other hyper-parameters being the best record's.
    What was tried at one value only was not searched, and nothing that is no number has an edge.

    Args:
        tried: records of one method on the same examples, as ``fl.sweep`` gives them; the best is the first of equals.
    """
    if not tried:
        return []
    best = max(tried, key=lambda record: record.average)
    return choice_edges(best, tried)


def choice_edges(chosen: Record, trials: Iterable[Record]) -> list[Edge]:
    """As ``edges``, of a choice that was made among ``trials``, validation records that were counted on any examples.

    Args:
        trials: of the same suite; those of other methods, seeds and examples decide nothing. What the record itself
            says was tried (``fl.run(tried=...)``) counts as well.
    """
    trials = [record for record in trials if (record.method, record.seed) == (chosen.method, chosen.seed)]
    found = [_edge(chosen, name, trials) for name in chosen.hyperparameters]
    return [edge for edge in found if edge is not None]


def _edge(chosen: Record, name: str, trials: Sequence[Record]) -> Edge | None:
    line, value = _line(chosen, name, trials), chosen.hyperparameters[name]
    searched = name not in UNORDERED and _is_number(value)
    noted = chosen.provenance.get("tried", {}).get(name, []) if searched else []
    values = sorted({record.hyperparameters[name] for record in line} | {v for v in noted if _is_number(v)})
    reached = {record.limit: record.average for record in line if record.hyperparameters[name] == value}
    as_good = {r.hyperparameters[name] for r in line if r.limit in reached and r.average >= reached[r.limit]}
    if len(values) < 2 or as_good - {value} or value not in (values[0], values[-1]):
        return None
    side = "highest" if value == values[-1] else "lowest"
    if value == 0:
        return None  # nothing lies beyond nothing: the other sign is another question
    beyond = _outward(values, side)
    return Edge(name, value, side, len(values), beyond) if _is_allowed(chosen, name, beyond) else None


def _line(through: Record, name: str, trials: Iterable[Record]) -> list[Record]:
    """Records that differ from one in a numeric hyper-parameter alone; none where it is no number."""
    if name in UNORDERED or not _is_number(through.hyperparameters[name]):
        return []
    rest = _without(through, name)
    return [r for r in trials if _is_number(r.hyperparameters.get(name)) and _without(r, name) == rest]


def _outward(values: Sequence[float], side: str) -> float:
    """The next value beyond the last, by the last step; below numbers that are all positive, by the last ratio."""
    before, last = values[-2:] if side == "highest" else values[1::-1]
    shrinks = side == "lowest" and last > 0 and not all(isinstance(value, int) for value in values)
    further = last * last / before if shrinks else last + (last - before)
    return float(f"{further:.6g}") if isinstance(further, float) else further  # without the dust of floating point


def _is_allowed(record: Record, name: str, value: float) -> bool:
    """Whether the method would take this value; of a method that is not ours nothing is known, so it might."""
    if record.method not in methods.names():
        return True
    try:
        complete(record.method, {**split_choice(record.hyperparameters)[1], name: value})
    except ParameterError:
        return False
    return True


def _without(record: Record, name: str) -> dict[str, Any]:
    return {key: value for key, value in record.hyperparameters.items() if key != name}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
