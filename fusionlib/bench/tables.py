"""The book's tables. They read records and cards; nothing is measured here, and nothing is typed by hand."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusionlib import methods
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.records import json_value, uses_defaults
from fusionlib.bench.run import Method
from fusionlib.bench.scores import Row, average_half_width, rows, without_repeats
from fusionlib.bench.table import Cell, Facts, Table, mark_best
from fusionlib.core import MethodCard, ParameterError, Record

TITLES = {"pretrained": "Pretrained", "finetuned": "Fine-tuned (each its own)", "multitask": "Multi-task training"}
_USES = {
    "inputs": "unlabelled inputs",
    "test-inputs": "unlabelled test inputs",
    "labels": "labels",
    "task-id": "the task of an input",
}
_COST = {"ensemble": ("T models", "T models"), "merge": ("1 model", "1 model"), "mix": ("more than 1", "depends")}


def by_task(records: Iterable[Record]) -> Table:
    """Accuracy in percent: the average, the normalised average, the worst task, and every task.

    References come first and do not compete; of the others the best of each column is bold, the second
    underlined. With one seed ± is half the 95 % interval of the average, with several the standard deviation.
    Normalised accuracy needs the fine-tuned models' record; without it the column is left out.
    """
    ordered = _ordered(records)
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
            f"{_percent(row.average)} ± {_percent(row.spread)}",
            *([_percent(row.normalized)] if normalized else []),
            _percent(row.worst[1]),
            *(_percent(row.accuracy[task]) for task in tasks),
        ]
        cells = [Cell(text, marks[column][index]) for column, text in enumerate(texts)]
        body.append([Cell(label(row.first), number=False), *cells])
    head = ["Method", "Average", *(["Normalised"] if normalized else []), "Worst", *tasks]
    return Table(head, body, _rule(ordered), _note(ordered))


def leaderboard(records: Iterable[Record]) -> Table:
    """One row per method and choice of hyper-parameters, the best average first, with information used and cost."""
    ordered = _ordered(records)
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
            [row and row.normalized for row in competing],
            [row and row.worst[1] for row in competing],
        ]
    )
    body = []
    for index, row in enumerate(ordered):
        first = row.first
        task, lowest = row.worst
        body.append(
            [
                Cell(title(first.method), number=False),
                Cell(f"{_percent(row.average)} ± {_percent(row.spread)}", marks[0][index]),
                Cell(_percent(row.normalized), marks[1][index]),
                Cell(f"{_percent(lowest)} ({task})", marks[2][index]),
                Cell(_settings(first) or "–", number=False),
                Cell(_chosen(first), number=False),
                Cell(_information(first), number=False),
                Cell(f"{first.stored_parameters / single:.3g} ×"),
                Cell(f"{first.active_parameters / single:.3g} ×"),
                Cell("–" if first.kind == "reference" else _seconds(first.fusion_seconds)),
            ]
        )
    columns = ["Method", "Average", "Normalised", "Worst task", "Hyper-parameters", "Chosen"]
    return Table([*columns, "Uses", "Stored", "Active", "Fusion"], body, _rule(ordered), _note(ordered))


def cards() -> Table:
    """All methods as their cards describe them."""
    body = []
    for name in methods.names():
        card = methods.get(name).card
        stored, active = _COST[card.kind]
        uses = ", ".join(_USES[need] for need in sorted(card.needs)) or "weights alone"
        knobs = ", ".join(_parameters(name)) or "none"
        body.append([Cell(text, number=False) for text in (card.title, card.kind, uses, knobs, stored, active)])
    return Table(["Method", "Kind", "Information used", "Hyper-parameters", "Stored", "Per prediction"], body)


def fact_box(method: Method) -> Facts:
    """What the card says of a method, for the head of its chapter."""
    known = methods.get(method)
    card: MethodCard = known.card
    stored, active = _COST[card.kind]
    grain = {
        "element": "each number by itself",
        "tensor": "each tensor by itself",
        "model": "the whole model at once",
    }
    returns = {"ensemble": "all the models, side by side", "merge": "one model of the same shape"}
    facts = [
        ("Kind", card.kind),
        ("Returns", returns.get(card.kind, "one model of a new shape")),
        ("Uses", ", ".join(_USES[need] for need in sorted(card.needs)) or "weights alone"),
        ("Works on", "outputs, not weights" if card.kind == "ensemble" else grain[card.scope]),
        ("Hyper-parameters", ", ".join(f"{k} = {v}" for k, v in _parameters(method).items()) or "none"),
        ("Stored", stored),
        ("Per prediction", active),
        ("Order of models", "without effect" if card.symmetric else "matters"),
        ("Call", f"{known.fuse.__module__}.fuse"),
    ]
    return Facts(card.title, facts)


def plain(columns: Sequence[str], rows: Iterable[Sequence[Any]], fmt: str = "{:.3g}") -> Table:
    """Any values in the look of the book's tables: the first column names the rows, numbers are set flush right.

    Args:
        fmt: how numbers with a fraction are written.
    """
    body = []
    for row in rows:
        numbers = [isinstance(value, int | float) for value in row]
        texts = [fmt.format(v) if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v) for v in row]
        body.append([Cell(text, number=number) for text, number in zip(texts, numbers, strict=True)])
    return Table(columns, body)


def half_width(record: Record) -> float:
    """Half the width of the 95 % interval of a record's average, for prose beside a table; in [0, 1]."""
    return average_half_width(record)


def title(method: str) -> str:
    """The name of a method or reference in prose."""
    if method in TITLES:
        return TITLES[method]
    return methods.get(method).card.title if method in methods.names() else method


def label(record: Record) -> str:
    """Method and the hyper-parameters that matter: "Task Arithmetic, scale 0.2 (tuned)"."""
    settings = _settings(record)
    tuned = f" (chosen on {record.selected_on})" if record.selected_on else ""
    return title(record.method) + (f", {settings}" if settings else "") + tuned


def short_labels(records: Sequence[Record]) -> list[str]:
    """Names for a figure: the method, and only those hyper-parameters in which its records differ."""
    names = []
    for record in records:
        same = [other.hyperparameters for other in records if other.method == record.method]
        differing = {n: v for n, v in record.hyperparameters.items() if any(other.get(n) != v for other in same)}
        settings = ", ".join(f"{name} {_value(value)}" for name, value in differing.items())
        names.append(title(record.method) + (f", {settings}" if settings else ""))
    return names


def _settings(record: Record) -> str:
    """Hyper-parameters in the card's grid, and others that differ from their default."""
    if record.method in REFERENCES or record.method not in methods.names():
        return ", ".join(f"{name} {_value(value)}" for name, value in record.hyperparameters.items())
    defaults, grid = _parameters(record.method), methods.get(record.method).card.grid
    shown = {n: v for n, v in record.hyperparameters.items() if n in grid or v != json_value(defaults[n])}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def _parameters(method: Method) -> dict[str, Any]:
    parameters = inspect.signature(methods.get(method).fuse).parameters.values()
    keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "data"]
    return {p.name: "required" if p.default is inspect.Parameter.empty else p.default for p in keyword}


def _chosen(record: Record) -> str:
    if not record.hyperparameters:
        return "–"
    if record.selected_on:
        return f"tuned on {record.selected_on}"
    return "defaults" if uses_defaults(record) else "given"


def _information(record: Record) -> str:
    known: Mapping[str, str] = {
        "pretrained": "no task data",
        "finetuned": "the task of an input",
        "multitask": "all training data",
    }
    return known.get(record.method) or ", ".join(_USES[need] for need in record.needs) or "weights alone"


def _ordered(records: Iterable[Record]) -> list[Row]:
    found = rows(records)
    if not found:
        raise ParameterError("there are no records to show; run the method chapters (or fl.run) first.")
    found = without_repeats(found)
    return sorted(found, key=lambda row: [*REFERENCES, row.first.method].index(row.first.method))


def _rule(ordered: list[Row]) -> list[int]:
    bounds = sum(row.first.method in REFERENCES for row in ordered)
    return [bounds] if 0 < bounds < len(ordered) else []


def _note(ordered: list[Row]) -> str:
    first = ordered[0].first
    seeds = max(len(row.records) for row in ordered)
    meaning = f"standard deviation over {seeds} seeds" if seeds > 1 else "half the 95 % interval"
    counted = f"the first {first.limit} examples of each task" if first.limit else "all examples"
    return f"Accuracy in %, {first.split} split, {counted}; ± is {meaning} of the average."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _seconds(value: float) -> str:
    return "< 0.01 s" if value < 0.01 else f"{value:.2f} s"


def _value(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"[{len(value)} values]"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
