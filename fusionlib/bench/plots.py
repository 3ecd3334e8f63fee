"""The book's figures. They read records and numbers that were measured elsewhere; nothing is fused here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionlib.bench.labels import short_labels, title
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.scores import Row, rows, wilson, without_repeats
from fusionlib.bench.style import COLOURS, GREY, SIZES, colour, marker, use_style
from fusionlib.core import ParameterError, Record, suggest

__all__ = ["COLOURS", "bars", "dots", "gaps", "heatmap", "sweep", "tradeoff", "use_style", "versus"]


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
        records: from ``fl.sweep``; with several seeds their mean is drawn, and the band is a standard deviation.
        x: hyper-parameter on the horizontal axis.
        y: a second one for a heat map.
        mark: value of ``x`` to mark, such as the paper's.
        references: records whose averages are drawn as horizontal lines.
        ax: where to draw, if not in a new figure.
    Raises: ParameterError, for no records, or if they differ in more than ``x`` and ``y``.
    """
    found = _swept(records, [x] if y is None else [x, y])
    if y is not None:
        return _sweep_map(found, x, y)
    fig, ax = _axes(ax)
    points = sorted(found, key=lambda row: row.first.hyperparameters[x])
    first = points[0].first
    values = [row.first.hyperparameters[x] for row in points]
    low = [100 * (row.average - row.spread) for row in points]
    high = [100 * (row.average + row.spread) for row in points]
    hue = colour(first.kind)
    ax.fill_between(values, low, high, color=hue, alpha=0.18, lw=0)
    centre = [100 * row.average for row in points]
    ax.plot(values, centre, color=hue, marker=marker(first.method), label=title(first.method))
    for row in rows(references):
        ax.axhline(100 * row.average, color=GREY, lw=1, ls="--")
        ax.annotate(
            title(row.first.method).split(" (")[0],
            (1, 100 * row.average),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize="small",
        )
    if mark is not None:
        ax.axvline(mark, color=GREY, lw=1, ls=":")
    ax.set(xlabel=x, ylabel=f"average accuracy, {first.split} (%)")
    return fig


def _swept(records: Iterable[Record], over: Sequence[str]) -> list[Row]:
    found = _bounds_first(rows(records))
    for row in found:
        for name in over:
            if name not in row.first.hyperparameters:
                raise ParameterError(
                    f"{row.first.method} has no hyper-parameter {name!r}.{suggest(name, row.first.hyperparameters)}"
                )
    fixed = [{n: v for n, v in row.first.hyperparameters.items() if n not in over} for row in found]
    differ = sorted(name for name in fixed[0] if any(other.get(name) != fixed[0][name] for other in fixed))
    if differ or len({row.first.method for row in found}) > 1:
        raise ParameterError(
            f"the records of one sweep differ in {' and '.join(over)} alone, but these differ in "
            f"{', '.join(differ) or 'their method'} too. Draw one sweep at a time."
        )
    return found


def _sweep_map(found: Sequence[Row], x: str, y: str) -> Figure:
    across = sorted({row.first.hyperparameters[x] for row in found})
    down = sorted({row.first.hyperparameters[y] for row in found})
    average = {(row.first.hyperparameters[y], row.first.hyperparameters[x]): 100 * row.average for row in found}
    matrix = [[average.get((row, column), float("nan")) for column in across] for row in down]
    names = [_short(value) for value in down]
    return heatmap(matrix, names, columns=[_short(value) for value in across], x_label=x, y_label=y, diverging=False)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    width = 0.6 + 0.68 * len(columns) + 0.075 * max(map(len, labels))
    fig, ax = plt.subplots(figsize=(width, 1.2 + 0.42 * len(labels)))
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
    found = _bounds_first(rows(records))
    ceiling = next((row for row in found if row.first.method == "finetuned"), None)
    ranked = sorted((row for row in found if row is not ceiling), key=lambda row: row.average, reverse=True)
    if ceiling is None or not ranked:
        raise ParameterError("gaps need the record of the fine-tuned models and of something else: fl.references().")
    matrix = [[100 * (row.accuracy[t] - top) for t, top in ceiling.accuracy.items()] for row in ranked]
    names = short_labels([row.first for row in ranked])
    return heatmap(matrix, names, columns=list(ceiling.accuracy), fmt="{:+.0f}", diverging=True)


def dots(records: Iterable[Record]) -> Figure:
    """Accuracy by task, a marker per method with its 95 % interval (of the first seed)."""
    found = _bounds_first(rows(records))
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
    names = short_labels([row.first for row in found])
    for row, name in zip(found, names, strict=True):
        first = row.first
        spent = {
            "stored": first.stored_parameters / single,
            "active": first.active_parameters / single,
            "seconds": first.fusion_seconds,
        }[cost]
        ax.errorbar(spent, 100 * row.average, yerr=100 * row.spread, ms=7, label=name, **_look(first))
    titles = {"stored": "stored parameters (models)", "active": "parameters read per prediction (models)"}
    ax.set(xlabel=titles.get(cost, "fusion time (s)"), ylabel=f"average accuracy, {found[0].first.split} (%)")
    fig.legend(loc="outside right upper")
    return fig


def versus(across: Iterable[Record], upwards: Iterable[Record], x_label: str = "", y_label: str = "") -> Figure:
    """One marker per method: what it keeps of the fine-tuned models' average in one suite, and in another.

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
        ax.errorbar(x[method], y[method], ms=7, label=title(method), **_look(first[method]))
    ends = [min(*(x[m] for m in shared), *(y[m] for m in shared)) - 2, 100]
    ax.plot(ends, ends, color=GREY, lw=1, ls="--")
    ax.set(xlabel=x_label, ylabel=y_label)
    fig.legend(loc="outside right upper")
    return fig


def _shares(records: Iterable[Record]) -> tuple[dict[str, float], dict[str, Record]]:
    """Of every method the best average, in percent of the fine-tuned models', and a record to draw it like."""
    found = sorted(_bounds_first(rows(records)), key=lambda row: row.average)
    ceiling = next((row.average for row in found if row.first.method == "finetuned"), None)
    if ceiling is None:
        raise ParameterError("shares are of the fine-tuned models' average, and their record is missing.")
    shares = {row.first.method: 100 * row.average / ceiling for row in found}
    return shares, {row.first.method: row.first for row in found}


def _look(record: Record) -> dict[str, Any]:
    """Colour by kind, marker by method; hollow where hyper-parameters are defaults that nobody chose."""
    hue = colour(record.kind)
    hollow = bool(record.hyperparameters) and record.selected_on is None
    return {"marker": marker(record.method), "ls": "none", "color": hue, "mfc": "none" if hollow else hue, "mew": 1.4}


def _bounds_first(found: list[Row]) -> list[Row]:
    if not found:
        raise ParameterError("there are no records to draw; run the method chapters (or fl.run) first.")
    return sorted(without_repeats(found), key=lambda row: row.first.method not in REFERENCES)


def _axes(ax: Axes | None) -> tuple[Figure, Axes]:
    if ax is None:
        fig, ax = plt.subplots(figsize=SIZES["text"])
        return fig, ax
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax
