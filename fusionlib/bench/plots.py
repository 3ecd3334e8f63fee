"""The book's figures. They read records and numbers that were measured elsewhere; nothing is fused here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fusionlib.bench.drawing import bounds_first, look
from fusionlib.bench.heatmap import heatmap
from fusionlib.bench.labels import short_labels, title
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.scores import rows, wilson
from fusionlib.bench.style import COLOURS, GREY, SIZES, use_style
from fusionlib.bench.sweep_plots import sweep
from fusionlib.core import ParameterError, Record

__all__ = ["COLOURS", "bars", "dots", "gaps", "heatmap", "sweep", "tradeoff", "use_style", "versus"]


def bars(values: Mapping[str, float], x_label: str = "", fmt: str = "{:.1f}") -> Figure:
    """One horizontal bar per entry, in their order, the number beside it.

    Args:
        values: label -> length of the bar.
        fmt: how numbers are written.
    """
    if not values:
        raise ParameterError("there are no values to draw.")
    fig, ax = plt.subplots(figsize=(SIZES["text"][0], 0.7 + 0.28 * len(values)))
    drawn = ax.barh(list(values), list(values.values()), height=0.6)
    ax.bar_label(drawn, fmt=fmt, padding=4, color=GREY)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    if min(values.values()) < 0:
        ax.axvline(0, color=GREY, lw=0.8)
    ax.set(xlabel=x_label)
    return fig


def gaps(records: Iterable[Record]) -> Figure:
    """How many points every method lies below each task's own fine-tuned model, the best average on top.

    Raises: ParameterError, if the fine-tuned models' record, against which it is measured, is missing.
    """
    found = bounds_first(rows(records))
    ceiling = next((row for row in found if row.first.method == "finetuned"), None)
    ranked = sorted((row for row in found if row is not ceiling), key=lambda row: row.average, reverse=True)
    if ceiling is None or not ranked:
        raise ParameterError("gaps need the record of the fine-tuned models and of something else: fl.references().")
    matrix = [[100 * (row.accuracy[t] - top) for t, top in ceiling.accuracy.items()] for row in ranked]
    names = short_labels([row.first for row in ranked])
    return heatmap(matrix, names, columns=list(ceiling.accuracy), fmt="{:+.0f}", diverging=True)


def dots(records: Iterable[Record]) -> Figure:
    """Accuracy by task, a marker per method with its 95 % interval (of the first seed)."""
    found = bounds_first(rows(records))
    tasks = list(found[0].first.counts)
    fig, ax = plt.subplots(figsize=(SIZES["wide"][0], 1.6 + 0.6 * len(tasks)))
    step = 0.7 / len(found)
    names = short_labels([row.first for row in found])
    for index, row in enumerate(found):
        first = row.first
        offset = (index - (len(found) - 1) / 2) * step
        at = [position + offset for position in range(len(tasks))]
        centre = [100 * row.accuracy[task] for task in tasks]
        limits = [wilson(*first.counts[task]) for task in tasks]
        # The interval is drawn around the mean over seeds, with the width that one seed's count gives.
        below = [100 * (first.accuracy[t] - lo) for t, (lo, _) in zip(tasks, limits, strict=True)]
        above = [100 * (hi - first.accuracy[t]) for t, (_, hi) in zip(tasks, limits, strict=True)]
        ax.errorbar(
            centre,
            at,
            xerr=[below, above],
            ms=5.5,
            elinewidth=1,
            label=names[index],
            **look(first),
        )
    ax.set_yticks(range(len(tasks)), tasks)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=f"accuracy, {found[0].first.split} (%)")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def tradeoff(records: Iterable[Record], cost: str = "stored") -> Figure:
    """Average accuracy against cost: "stored" or "active" parameters as multiples of one model, or "seconds"."""
    found = bounds_first(rows(records))
    if cost not in ("stored", "active", "seconds"):
        raise ParameterError(f"cost = {cost!r} is not known; allowed: 'stored', 'active', 'seconds'.")
    single = min(row.first.active_parameters for row in found)
    fig, ax = plt.subplots(figsize=SIZES["wide"])
    names = short_labels([row.first for row in found])
    for row, name in zip(found, names, strict=True):
        first = row.first
        spent = {
            "stored": first.stored_parameters / single,
            "active": first.active_parameters / single,
            "seconds": first.fusion_seconds,
        }[cost]
        ax.errorbar(spent, 100 * row.average, yerr=100 * row.spread, ms=7, label=name, **look(first))
    titles = {"stored": "stored parameters (models)", "active": "parameters read per prediction (models)"}
    ax.set(xlabel=titles.get(cost, "fusion time (s)"), ylabel=f"average accuracy, {found[0].first.split} (%)")
    fig.legend(loc="outside right upper")
    return fig


def versus(across: Iterable[Record], upwards: Iterable[Record], x_label: str = "", y_label: str = "") -> Figure:
    """One marker per method: its normalised accuracy in one suite, and in another, in percent.

    Args:
        across: records of the first suite; upwards: of the second. Methods that are in both are drawn.
    Raises: ParameterError, if the fine-tuned models' record is missing, or no method is in both.
    """
    (x, first), (y, _) = (_shares(records) for records in (across, upwards))
    shared = [method for method in first if method in x and method in y and method not in REFERENCES]
    if not shared:
        raise ParameterError("no method is in both groups of records; run the same methods on both suites.")
    fig, ax = plt.subplots(figsize=SIZES["wide"])
    for method in shared:
        ax.errorbar(x[method], y[method], ms=7, label=title(method), **look(first[method]))
    ends = [min(*(x[m] for m in shared), *(y[m] for m in shared)) - 2, 100]
    ax.plot(ends, ends, color=GREY, lw=1, ls="--")
    ax.set(xlabel=x_label, ylabel=y_label)
    fig.legend(loc="outside right upper")
    return fig


def _shares(records: Iterable[Record]) -> tuple[dict[str, float], dict[str, Record]]:
    """Of every method's row with the best average: the normalised accuracy in percent, and a record to draw it like."""
    found = sorted(bounds_first(rows(records)), key=lambda row: row.average)
    shares = {row.first.method: 100 * row.normalized for row in found if row.normalized is not None}
    if not shares:
        raise ParameterError("accuracy is normalised by that of the fine-tuned models, and their record is missing.")
    return shares, {row.first.method: row.first for row in found}
