"""The figure of a sweep: a curve with its band over one hyper-parameter, a heat map over two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionlib.bench.drawing import axes, bounds_first
from fusionlib.bench.edges import edges
from fusionlib.bench.heatmap import heatmap
from fusionlib.bench.labels import title
from fusionlib.bench.scores import Row, rows
from fusionlib.bench.style import GREY, colour, marker
from fusionlib.core import ParameterError, Record, suggest


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

    Where validation data's best value is the last one tried, the axis says so.

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
    fig, ax = axes(ax)
    points = sorted(found, key=lambda row: row.first.hyperparameters[x])
    first = points[0].first
    values = [row.first.hyperparameters[x] for row in points]
    low = [100 * (row.average - row.spread) for row in points]
    high = [100 * (row.average + row.spread) for row in points]
    hue = colour(first.kind)
    ax.fill_between(values, low, high, color=hue, alpha=0.18, lw=0)
    centre = [100 * row.average for row in points]
    ax.plot(values, centre, color=hue, marker=marker(first.method), label=title(first.method))
    _draw_levels(ax, [(title(row.first.method).split(" (")[0], 100 * row.average) for row in rows(references)])
    if mark is not None:
        ax.axvline(mark, color=GREY, lw=1, ls=":")
    ax.set(xlabel=_axis(found, x), ylabel=f"average accuracy, {first.split} (%)")
    return fig


def _draw_levels(ax: Axes, levels: Sequence[tuple[str, float]]) -> None:
    for _, level in levels:
        ax.axhline(level, color=GREY, lw=1, ls="--")
    # A name stands on its line, unless another line is too near above it: then it hangs below.
    bottom, top = ax.get_ylim()
    for name, level in levels:
        hangs = any(0 < other - level < 0.07 * (top - bottom) for _, other in levels)
        ax.annotate(
            name,
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -3 if hangs else 3),
            textcoords="offset points",
            ha="right",
            va="top" if hangs else "baseline",
            fontsize="small",
        )


def _swept(records: Iterable[Record], over: Sequence[str]) -> list[Row]:
    found = bounds_first(rows(records))
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
    return heatmap(
        matrix,
        names,
        columns=[_short(value) for value in across],
        x_label=_axis(found, x),
        y_label=_axis(found, y),
        diverging=False,
    )


def _axis(found: Sequence[Row], name: str) -> str:
    """The hyper-parameter, and whether its best value is the last one that was tried on validation data."""
    if found[0].first.split != "val":
        return name
    sides = [edge.side for edge in edges([row.first for row in found]) if edge.name == name]
    return f"{name} (the best is the {sides[0]} tried)" if sides else name


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
