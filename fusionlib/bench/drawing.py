"""What the figures of records share: a new axis or the one given, how a method looks, in which order they are drawn."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.scores import Row, without_repeats
from fusionlib.bench.style import SIZES, colour, marker
from fusionlib.core import ParameterError, Record


def look(record: Record) -> dict[str, Any]:
    """Colour by kind, marker by method; hollow where hyper-parameters are defaults that nobody chose."""
    hue = colour(record.kind)
    hollow = bool(record.hyperparameters) and record.selected_on is None
    return {"marker": marker(record.method), "ls": "none", "color": hue, "mfc": "none" if hollow else hue, "mew": 1.4}


def bounds_first(found: list[Row]) -> list[Row]:
    """Rows without repeats, those of reference models before those of methods; ParameterError if there are none."""
    if not found:
        raise ParameterError("there are no records to draw; run the method chapters (or fl.run) first.")
    return sorted(without_repeats(found), key=lambda row: row.first.method not in REFERENCES)


def axes(ax: Axes | None) -> tuple[Figure, Axes]:
    """A new figure as wide as the text, with its axes; or the axes given, with the figure they are in."""
    if ax is None:
        fig, ax = plt.subplots(figsize=SIZES["text"])
        return fig, ax
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax
