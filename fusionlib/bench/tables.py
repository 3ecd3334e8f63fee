"""The book's tables. They read records and cards; nothing is measured here, and nothing is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from fusionlib import methods
from fusionlib.bench.hyperparameters import Method
from fusionlib.bench.labels import information_of, label, parameters_of, percent, short_labels, title
from fusionlib.bench.leaderboard import leaderboard, note, ordered_rows, rule
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.scores import average_half_width, kept
from fusionlib.bench.table import Cell, Facts, Table, mark_best
from fusionlib.core import MethodCard, ParameterError, Record

__all__ = [
    "by_metric",
    "by_task",
    "cards",
    "fact_box",
    "half_width",
    "kept",
    "label",
    "leaderboard",
    "parameters_of",
    "plain",
    "short_labels",
    "title",
]

_RETURNS = {
    "ensemble": ("all the models, side by side", "T models", "T models"),
    "weights": ("one model of the same shape", "1 model", "1 model"),
    "mix": ("one model of a new shape", "more than 1", "depends"),
}


def by_task(records: Iterable[Record]) -> Table:
    """Accuracy in percent: the average, the normalised average, the worst task, and every task.

    References come first and do not compete; of the others the best of each column is bold, the second
    underlined. With one seed ± is half the 95 % interval of the average, with several the standard deviation.
    Normalised accuracy needs the fine-tuned models' record; without it the column is left out.
    """
    ordered = ordered_rows(records)
    normalized = any(row.normalized is not None for row in ordered)
    tasks = list(ordered[0].first.counts)
    competing = [None if row.first.method in REFERENCES else row for row in ordered]
    columns = [[row and row.average for row in competing]]
    if normalized:
        columns.append([row and row.normalized for row in competing])
    columns.append([row and row.worst[1] for row in competing])
    columns += [[row and row.accuracy[task] for row in competing] for task in tasks]
    marks = mark_best(columns)
    body = []
    for index, row in enumerate(ordered):
        texts = [
            f"{percent(row.average)} ± {percent(row.spread)}",
            *([percent(row.normalized)] if normalized else []),
            percent(row.worst[1]),
            *(percent(row.accuracy[task]) for task in tasks),
        ]
        cells = [Cell(text, marks[column][index]) for column, text in enumerate(texts)]
        body.append([Cell(label(row.first), number=False), *cells])
    head = ["Method", "Average", *(["Normalised"] if normalized else []), "Worst", *tasks]
    return Table(head, body, rule(ordered), note(ordered))


def by_metric(records: Iterable[Record], fmt: str = "{:.3f}") -> Table:
    """What was measured besides the counts, a column per task and measurement, averaged over seeds.

    Raises: ParameterError, if nothing was measured besides.
    """
    ordered = ordered_rows(records)
    # a record that was read has its names sorted, a fresh one not yet: the table is the same for both
    first = ordered[0].first
    named = [(task, name) for task in first.tasks for name in sorted(first.metrics.get(task, {}))]
    if not named:
        raise ParameterError("these records hold counts alone; by_task shows them.")
    body = [
        [
            Cell(label(row.first), number=False),
            *(Cell(fmt.format(fmean(r.metrics[task][name] for r in row.records))) for task, name in named),
        ]
        for row in ordered
    ]
    return Table(["Method", *(f"{task}: {name}" for task, name in named)], body, rule(ordered))


def cards() -> Table:
    """All methods as their cards describe them."""
    body = []
    for name in methods.names():
        card = methods.get(name).card
        _, stored, active = _returned(card)
        uses = information_of(name)
        knobs = ", ".join(parameters_of(name)) or "none"
        body.append([Cell(text, number=False) for text in (card.title, card.kind, uses, knobs, stored, active)])
    return Table(["Method", "Kind", "Information used", "Hyper-parameters", "Stored", "Per prediction"], body)


def fact_box(method: Method) -> Facts:
    """What the card says of a method, for the head of its chapter."""
    known = methods.get(method)
    card: MethodCard = known.card
    returned, stored, active = _returned(card)
    grain = {
        "element": "each number by itself",
        "tensor": "each tensor by itself",
        "model": "the whole model at once",
    }
    facts = [
        ("Kind", card.kind),
        ("Returns", returned),
        ("Uses", information_of(method)),
        ("Works on", "outputs, not weights" if card.kind == "ensemble" else grain[card.scope]),
        ("Hyper-parameters", ", ".join(f"{k} = {v}" for k, v in parameters_of(method).items()) or "none"),
        ("Stored", stored),
        ("Per prediction", active),
        ("Order of models", "without effect" if card.symmetric else "matters"),
        ("Call", f"{known.fuse.__module__}.fuse"),
    ]
    if card.fuses == "pretrained":
        facts = [fact for fact in facts if fact[0] != "Order of models"]
        facts.insert(1, ("Acts on", "one model"))
    return Facts(card.title, facts)


def _returned(card: MethodCard) -> tuple[str, str, str]:
    """What comes out, what of it is stored, and what one prediction reads."""
    # a method that turns state dicts into one of the same keys returns the same shape, whatever its kind
    return _RETURNS["weights" if card.kind == "merge" or card.takes == "weights" else card.kind]


def plain(columns: Sequence[str], rows: Iterable[Sequence[Any]], fmt: str = "{:.3g}") -> Table:
    """Any values in the look of the book's tables: the first column names the rows, numbers are set flush right.

    Args:
        fmt: how numbers with a fraction are written.
    """
    body = []
    for row in rows:
        numbers = [isinstance(value, int | float) for value in row]
        texts = [_rounded(v, fmt) if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v) for v in row]
        body.append([Cell(text, number=number) for text, number in zip(texts, numbers, strict=True)])
    return Table(columns, body)


def _rounded(value: float, fmt: str) -> str:
    text = fmt.format(value)
    return text if text.strip("-0.") else text.removeprefix("-")  # a loss of nothing is 0.0, not -0.0


def half_width(record: Record) -> float:
    """Half the width of the 95 % interval of a record's average, for prose beside a table; in [0, 1]."""
    return average_half_width(record)
