"""Words for records: what a method is called, its hyper-parameters, what it used, and how numbers are written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlib import methods
from fusionlib.bench.batch_norm import KEYWORD
from fusionlib.bench.hyperparameters import Method
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.records import json_value, uses_defaults
from fusionlib.core import Record

TITLES = {"pretrained": "Pretrained", "finetuned": "Fine-tuned (each its own)", "multitask": "Multi-task training"}
USES = {
    "inputs": "unlabelled inputs",
    "test-inputs": "unlabelled test inputs",
    "labels": "labels",
    "task-id": "the task of an input",
}


def title(method: str) -> str:
    """The name of a method or reference in prose."""
    if method in TITLES:
        return TITLES[method]
    return methods.get(method).card.title if method in methods.names() else method


def label(record: Record) -> str:
    """Method and the hyper-parameters that matter: "Task Arithmetic, scale 0.2 (tuned)"."""
    given = settings(record)
    tuned = f" (chosen on {record.selected_on})" if record.selected_on else ""
    return title(record.method) + (f", {given}" if given else "") + tuned


def short_labels(records: Sequence[Record]) -> list[str]:
    """Names for a figure: the method, and only those hyper-parameters in which its records differ."""
    names = []
    for record in records:
        same = [other.hyperparameters for other in records if other.method == record.method]
        differing = {n: v for n, v in record.hyperparameters.items() if any(other.get(n) != v for other in same)}
        given = ", ".join(f"{name} {_value(value)}" for name, value in differing.items())
        names.append(title(record.method) + (f", {given}" if given else ""))
    return names


def settings(record: Record) -> str:
    """Hyper-parameters in the card's grid, and others that differ from their default."""
    if record.method in REFERENCES or record.method not in methods.names():
        return ", ".join(f"{name} {_value(value)}" for name, value in record.hyperparameters.items())
    defaults, grid = parameters_of(record.method), methods.get(record.method).card.grid
    # in the signature's order: what was read from a file has its keys sorted
    given = {name: record.hyperparameters[name] for name in (*defaults, KEYWORD) if name in record.hyperparameters}
    shown = {n: v for n, v in given.items() if n in grid or n == KEYWORD or v != json_value(defaults[n])}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def parameters_of(method: Method) -> dict[str, Any]:
    """Hyper-parameters of a method and their defaults; "required" where there is none."""
    parameters = inspect.signature(methods.get(method).fuse).parameters.values()
    keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "data"]
    return {p.name: "required" if p.default is inspect.Parameter.empty else p.default for p in keyword}


def chosen(record: Record) -> str:
    """How the hyper-parameters were come by, if there are any."""
    if not record.hyperparameters:
        return "–"
    if record.selected_on:
        return f"tuned on {record.selected_on}"
    return "defaults" if uses_defaults(record) else "given"


def information(record: Record) -> str:
    """What was used beyond the weights."""
    known: Mapping[str, str] = {
        "pretrained": "no task data",
        "finetuned": "the task, to pick a model",
        "multitask": "all training data",
    }
    if record.method in known:
        return known[record.method]
    used = [USES[need] for need in record.needs] + (["labels to choose"] if record.selected_on else [])
    return ", ".join(used) or "weights alone"


def information_of(method: Method) -> str:
    """What a method uses beyond the weights by its card, and whether labels are needed to choose its values."""
    values = parameters_of(method).items()
    open_ = [name for name, default in values if default == "required"]
    used = [USES[need] for need in sorted(methods.get(method).card.needs)]
    return ", ".join([*used, *(f"labels to choose {name}" for name in open_)]) or "weights alone"


def percent(value: float | None) -> str:
    """A fraction in percent, with one digit; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def seconds(value: float) -> str:
    """A duration."""
    return "< 0.01 s" if value < 0.01 else f"{value:.2f} s"


def megabytes(value: int | None) -> str:
    """An amount of memory, in MB of 10^6 bytes; a dash where it was not measured."""
    return "–" if value is None else f"{value / 1e6:,.0f} MB"


def _value(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"[{len(value)} values]"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
