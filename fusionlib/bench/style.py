"""What all figures share: the style sheet, two sizes, one colour per kind of method, one marker per method."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TypeAlias

import matplotlib.pyplot as plt

from fusionlib import methods

Marker: TypeAlias = str | tuple[int, int, int]

SIZES = {"text": (6.4, 3.6), "wide": (8.6, 4.2)}
GREY = "#7f7f7f"
COLOURS = {"ensemble": "#3a9e74", "merge": "#3d86c6", "mix": "#a06bc4", "reference": GREY}
_MARKERS = {"pretrained": "v", "finetuned": "^", "multitask": "*"}
# Letters are matplotlib's own markers; (corners, 1, angle) is a star, (corners, 0, angle) a polygon.
_STARS = ((4, 1, 0), (6, 1, 0), (5, 1, 180), (8, 1, 0), (4, 1, 45), (3, 1, 0), (3, 1, 180), (7, 0, 0))
_SHAPES: tuple[Marker, ...] = (*"oDsPXph<>8Hd", *_STARS)


def use_style() -> None:
    """Switch this process to the book's style; in a notebook, figures become SVG, the same bytes at every run."""
    plt.style.use(Path(__file__).with_name("fusion.mplstyle"))
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None}, bbox_inches="tight")


def colour(kind: str) -> str:
    """The colour of a kind of method."""
    return COLOURS[kind]


def marker(method: str) -> Marker:
    """The marker of a method: the same in all figures, also when methods are added."""
    if method in _MARKERS:
        return _MARKERS[method]
    known = methods.names()
    return _SHAPES[(known.index(method) if method in known else zlib.crc32(method.encode())) % len(_SHAPES)]
