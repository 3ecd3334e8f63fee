"""The leaderboard: one row per method and choice of hyper-parameters, with what it used and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusionlib.bench import records
from fusionlib.bench.edges import choice_edges
from fusionlib.bench.labels import chosen, information, megabytes, percent, seconds, settings, title
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.scores import Row, rows, without_repeats
from fusionlib.bench.table import Cell, Table, mark_best
from fusionlib.core import ParameterError, Record


def leaderboard(found: Iterable[Record]) -> Table:
    """One row per method and choice of hyper-parameters, the best average first, with information used and cost.

    What is measured and what it costs come first: on a narrow page the last columns are reached by scrolling.
    """
    ordered = ordered_rows(found)
    bounds = [row for row in ordered if row.first.method in REFERENCES]
    ranked = sorted(
        (row for row in ordered if row.first.method not in REFERENCES), key=lambda row: row.average, reverse=True
    )
    ordered = [*bounds, *ranked]
    single = min(row.first.active_parameters for row in ordered)
    competing = [None if row.first.method in REFERENCES else row for row in ordered]
    marks = mark_best(
        [
            [row and row.average for row in competing],
            [row and row.worst[1] for row in competing],
            [row and row.normalized for row in competing],
        ]
    )
    body = []
    for index, row in enumerate(ordered):
        first = row.first
        task, lowest = row.worst
        body.append(
            [
                Cell(title(first.method), number=False),
                Cell(f"{percent(row.average)} ± {percent(row.spread)}", marks[0][index]),
                Cell(f"{percent(lowest)} ({task})", marks[1][index]),
                Cell(percent(row.normalized), marks[2][index]),
                Cell(f"{first.stored_parameters / single:.3g} ×"),
                Cell(f"{first.active_parameters / single:.3g} ×"),
                Cell("–" if first.kind == "reference" else seconds(first.fusion_seconds)),
                Cell(information(first), number=False),
                Cell(settings(first) or "–", number=False),
                Cell(chosen(first), number=False),
                Cell("–" if first.kind == "reference" else megabytes(first.peak_memory)),
            ]
        )
    columns = ["Method", "Average", "Worst task", "Normalised", "Stored", "Active", "Fusion"]
    columns += ["Uses", "Hyper-parameters", "Chosen", "Extra memory"]
    return Table(columns, body, rule(ordered), note(ordered), _facets(competing))


def _facets(competing: Sequence[Row | None]) -> dict[str, list[str]]:
    """What a reader can choose rows by; the references stay whatever is chosen."""
    shown = {"Kind": lambda record: record.kind, "Uses": information, "Hyper-parameters": chosen}
    return {name: [word(row.first) if row else "" for row in competing] for name, word in shown.items()}


def ordered_rows(given: Iterable[Record]) -> list[Row]:
    """Rows over seeds, the references first; ParameterError where there are none."""
    found = rows(given)
    if not found:
        raise ParameterError("there are no records to show; run the method chapters (or fl.run) first.")
    found = without_repeats(found)
    return sorted(found, key=lambda row: [*REFERENCES, row.first.method].index(row.first.method))


def rule(ordered: Sequence[Row]) -> list[int]:
    """Where a line divides the references from the methods."""
    bounds = sum(row.first.method in REFERENCES for row in ordered)
    return [bounds] if 0 < bounds < len(ordered) else []


def note(ordered: Sequence[Row]) -> str:
    """What the numbers are, in one sentence; in a second one, which choices have nothing tried beyond them."""
    first = ordered[0].first
    seeds = max(len(row.records) for row in ordered)
    meaning = f"standard deviation over {seeds} seeds" if seeds > 1 else "half the 95 % interval"
    counted = f"the first {first.limit} examples of each task" if first.limit else "all examples"
    return f"Accuracy in %, {first.split} split, {counted}; ± is {meaning} of the average.{_edge_note(ordered)}"


def _edge_note(ordered: Sequence[Row]) -> str:
    """The choices that lie on the edge of what was tried, from the validation records that are stored beside them."""
    on_edge = []
    for row in ordered:
        if row.first.selected_on:
            found = choice_edges(row.first, records.trials(row.first))
            on_edge += [f"{title(row.first.method)} ({e.name} {e.value:g}, the {e.side})" for e in found]
    if not on_edge:
        return ""
    return f" Of the choices on val these lie on the edge of what was tried: {', '.join(on_edge)}."
