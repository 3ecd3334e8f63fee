"""Methods side by side over suites: of each method one record that was not chosen by looking at test data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusionlib.bench import records
from fusionlib.bench.batch_norm import KEYWORD
from fusionlib.core import Record


def fair(found: Iterable[Record]) -> list[Record]:
    """Comparable records (see ``fl.records.comparable``), and of a method that has none its record, if it is the only.

    Nothing was chosen among the records of a method that ran once, with values that were set beforehand: such are
    those of methods that were given few steps.
    """
    found = list(found)
    shown = records.comparable(found)
    known = {record.method for record in shown}
    left = [record for record in found if record.method not in known]
    return [r for r in found if r in shown or sum(r.method == other.method for other in left) == 1]


def one_each(backbone: str, tasks: str | Sequence[str], tuning: str, limit: int | None) -> dict[str, Record]:
    """Method or reference -> its record on the test split: the one whose hyper-parameters validation data chose.

    Where nothing was chosen it is the one with defaults, or the only one there is. Where some merges of the suite
    had their BatchNorm statistics measured again, only such merges count.
    """
    found = records.read(backbone=backbone, tasks=tasks, tuning=tuning, limit=limit)
    if any(KEYWORD in record.hyperparameters for record in found):
        kept_as_they_are = ("reference", "ensemble")
        found = [r for r in found if r.kind in kept_as_they_are or KEYWORD in r.hyperparameters]
    shown = fair(found)
    once = [record for record in shown if sum(record.method == other.method for other in shown) == 1]
    return {record.method: record for record in (*once, *records.preferred(shown))}
