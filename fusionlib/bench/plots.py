"""The book's figures. They read records and numbers that were measured elsewhere; nothing is fused here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.scores import Row, average_half_width, rows, wilson
from fusionlib.bench.style import COLOURS, GREY, SIZES, colour, marker, use_style
from fusionlib.bench.tables import label, title
from fusionlib.core import ParameterError, Record

__all__ = ["COLOURS", "dots", "heatmap", "sweep", "tradeoff", "use_style"]


def sweep(
    records: Sequence[Record],
    x: str,
    y: str | None = None,
    *,
    mark: float | None = None,
    references: Iterable[Record] = (),
    ax: Axes | None = None,
) -> Figure:
    """Average accuracy over one hyper-parameter with its 95 % band, or a heat map over two.

    Args:
        records: from ``fl.sweep``.
        x: hyper-parameter on the horizontal axis.
        y: a second one for a heat map.
        mark: value of ``x`` to mark, such as the paper's.
        references: records whose averages are drawn as horizontal lines.
        ax: where to draw, if not in a new figure.
    """
    if y is not None:
        return _sweep_map(records, x, y)
    fig, ax = _axes(ax)
    points = sorted(records, key=lambda record: record.hyperparameters[x])
    values = [record.hyperparameters[x] for record in points]
    centre = [100 * record.average for record in points]
    half = [100 * average_half_width(record) for record in points]
    hue = colour(points[0].kind)
    low, high = [c - h for c, h in zip(centre, half, strict=True)], [c + h for c, h in zip(centre, half, strict=True)]
    ax.fill_between(values, low, high, color=hue, alpha=0.18, lw=0)
    ax.plot(values, centre, color=hue, marker=marker(points[0].method), label=title(points[0].method))
    for record in references:
        ax.axhline(100 * record.average, color=GREY, lw=1, ls="--")
        ax.annotate(
            title(record.method).split(" (")[0],
            (1, 100 * record.average),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize="small",
        )
    if mark is not None:
        ax.axvline(mark, color=GREY, lw=1, ls=":")
    ax.set(xlabel=x, ylabel=f"average accuracy, {points[0].split} (%)")
    return fig


def _sweep_map(records: Sequence[Record], x: str, y: str) -> Figure:
    across = sorted({record.hyperparameters[x] for record in records})
    down = sorted({record.hyperparameters[y] for record in records})
    found = {(r.hyperparameters[y], r.hyperparameters[x]): 100 * r.average for r in records}
    matrix = [[found.get((row, column), float("nan")) for column in across] for row in down]
    names = [f"{value:g}" for value in down]
    return heatmap(matrix, names, columns=[f"{value:g}" for value in across], x_label=x, y_label=y, diverging=False)


def heatmap(
    matrix: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    x_label: str = "",
    y_label: str = "",
    fmt: str = "{:.1f}",
    diverging: bool | None = None,
) -> Figure:
    """A matrix of numbers, each written into its field.

    Args:
        matrix: rows of equal length; NaN leaves a field empty.
        labels: of the rows, and of the columns unless ``columns`` are given.
        fmt: how numbers are written.
        diverging: colours around zero; by default if there are negative numbers.
    """
    columns = labels if columns is None else columns
    numbers = [value for row in matrix for value in row if value == value]
    if not numbers:
        raise ParameterError("the matrix holds no numbers to draw.")
    diverging = min(numbers) < 0 if diverging is None else diverging
    size = max(abs(n) for n in numbers) or 1.0
    low, high = (-size, size) if diverging else (min(numbers), max(numbers))
    fig, ax = plt.subplots(figsize=(1.6 + 0.68 * len(columns), 1.2 + 0.42 * len(labels)))
    ax.imshow(matrix, cmap="RdBu" if diverging else "Blues", vmin=low, vmax=high, aspect="auto")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value == value:
                part = (value - low) / ((high - low) or 1)
                dark = abs(part - 0.5) > 0.33 if diverging else part > 0.6
                text = "white" if dark else "#222222"
                ax.text(j, i, fmt.format(value), ha="center", va="center", color=text, fontsize="small")
    ax.set_xticks(range(len(columns)), columns, rotation=35 if max(map(len, columns)) > 5 else 0, ha="right")
    if max(map(len, columns)) <= 5:
        plt.setp(ax.get_xticklabels(), ha="center")
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return fig


def dots(records: Iterable[Record]) -> Figure:
    """Accuracy by task, a marker per method with its 95 % interval (of the first seed)."""
    found = _bounds_first(rows(records))
    tasks = list(found[0].first.counts)
    fig, ax = plt.subplots(figsize=(SIZES["wide"][0], 1.6 + 0.6 * len(tasks)))
    step = 0.7 / len(found)
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
            label=label(first),
            **_look(first),
        )
    ax.set_yticks(range(len(tasks)), tasks)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=f"accuracy, {found[0].first.split} (%)")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def tradeoff(records: Iterable[Record], cost: str = "stored") -> Figure:
    """Average accuracy against cost: "stored" or "active" parameters as multiples of one model, or "seconds"."""
    found = _bounds_first(rows(records))
    if cost not in ("stored", "active", "seconds"):
        raise ParameterError(f"cost = {cost!r} is not known; allowed: 'stored', 'active', 'seconds'.")
    single = min(row.first.active_parameters for row in found)
    fig, ax = plt.subplots(figsize=SIZES["wide"])
    for row in found:
        first = row.first
        spent = {
            "stored": first.stored_parameters / single,
            "active": first.active_parameters / single,
            "seconds": first.fusion_seconds,
        }[cost]
        ax.errorbar(spent, 100 * row.average, yerr=100 * row.spread, ms=7, label=label(first), **_look(first))
    titles = {"stored": "stored parameters (models)", "active": "parameters read per prediction (models)"}
    ax.set(xlabel=titles.get(cost, "fusion time (s)"), ylabel=f"average accuracy, {found[0].first.split} (%)")
    fig.legend(loc="outside right upper")
    return fig


def _look(record: Record) -> dict[str, Any]:
    """Colour by kind, marker by method; hollow where hyper-parameters are defaults that nobody chose."""
    hue = colour(record.kind)
    hollow = bool(record.hyperparameters) and record.selected_on is None
    return {"fmt": marker(record.method), "color": hue, "mfc": "none" if hollow else hue, "mew": 1.4}


def _bounds_first(found: list[Row]) -> list[Row]:
    if not found:
        raise ParameterError("there are no records to draw; run the method chapters (or fl.run) first.")
    return sorted(found, key=lambda row: row.first.method not in REFERENCES)


def _axes(ax: Axes | None) -> tuple[Figure, Axes]:
    if ax is None:
        fig, ax = plt.subplots(figsize=SIZES["text"])
        return fig, ax
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax
