"""A matrix of numbers as coloured fields."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fusionlib.core import ParameterError


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
