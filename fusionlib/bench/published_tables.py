"""Tables of published numbers beside our own, and tables that are folded until they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fusionlib.bench.published import Entry, is_reference, suite_facts
from fusionlib.bench.published_records import differences, reproduced
from fusionlib.bench.table import Cell, Table, mark_best, markdown
from fusionlib.core import ParameterError, Record

NOT_RUN = "not run here"


@dataclass(frozen=True)
class Folded:
    """A table behind its title, opened by a click."""

    title: str
    table: Table

    def _repr_html_(self) -> str:
        return f"<details><summary>{escape(self.title)}</summary>{self.table._repr_html_()}</details>"

    def _repr_markdown_(self) -> str:
        return f"**{markdown(self.title)}**\n\n{self.table._repr_markdown_()}"

    def __repr__(self) -> str:
        return f"{self.title}\n{self.table!r}"


def against(entries: Sequence[Entry], records: Iterable[Record] = ()) -> Table:
    """Published accuracy by method and task; where a record of ours measured the same, the difference in points.

    The column "Here" is shown only if something was measured here. References come first and do not compete; of the
    others the best published number of each column is bold, the second underlined. An average with an asterisk is
    computed from its row, because none was published.

    Args:
        entries: of one suite and the same tasks.

    Raises: ParameterError, for no entries or such as do not fit into one table.
    """
    if not entries:
        raise ParameterError("there are no published numbers to show; select some with fusionlib.bench.published.")
    tasks = list(entries[0].values)
    for entry in entries:
        if set(entry.values) != set(tasks):
            raise ParameterError(f"{entry.method} was published for other tasks than {entries[0].method}: two tables.")
    ordered = sorted(entries, key=lambda entry: not is_reference(entry))
    records = list(records)
    competing = [None if is_reference(entry) else entry for entry in ordered]
    marks = mark_best(
        [[e and _average(e) for e in competing], *([e and e.values[task] for e in competing] for task in tasks)]
    )
    found = [reproduced(entry, records) for entry in ordered]
    here = any(found)
    body = []
    for index, (entry, record) in enumerate(zip(ordered, found, strict=True)):
        change = differences(entry, record) if record else {}
        average = f"{_average(entry):.1f}{'*' if entry.published is None else ''}"
        ours = f"{100 * record.average:.1f} ({100 * record.average - _average(entry):+.1f})" if record else NOT_RUN
        name = entry.method + (f" ({entry.short_setting})" if entry.short_setting else "")
        cells = [Cell(name, number=False), Cell(average, marks[0][index])]
        cells += [Cell(ours, number=False)] if here else []
        for column, task in enumerate(tasks, start=1):
            beside = f" ({change[task]:+.1f})" if record else ""
            cells.append(Cell(f"{entry.values[task]:.1f}{beside}", marks[column][index]))
        body.append(cells)
    bounds = sum(map(is_reference, ordered))
    return Table(
        ["Method", "Average", *(["Here"] if here else []), *tasks],
        body,
        [bounds] if 0 < bounds < len(ordered) else [],
        _note(ordered, here),
    )


def _average(entry: Entry) -> float:
    return entry.mean if entry.published is None else entry.published


def _note(ordered: Sequence[Entry], here: bool) -> str:
    title = suite_facts(ordered[0].suite).get("title", ordered[0].suite)
    asterisk = " * computed from its row." if any(entry.published is None for entry in ordered) else ""
    ours = "In brackets: ours minus published, points." if here else "None of them was measured here."
    return f"{title}. Published numbers, in %.{asterisk} {ours}"
