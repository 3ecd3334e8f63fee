"""Hyper-parameters out of range are found before a kernel starts: by fusing models of a few weights with them."""

from __future__ import annotations

import inspect
from typing import Any

from fusionlib import methods
from fusionlib.core import ParameterError
from fusionlib.press.chapters import Chapter


def out_of_range(chapter: Chapter, key: str, value: Any) -> str | None:
    """What the chapter's method says against this value of one of its hyper-parameters; None if it takes it.

    Only methods that fuse weights are asked: they answer at once and need no data. ``weights`` has one value per
    model, and how many models there will be is known only in the chapter.
    """
    name = chapter.name.rpartition("/")[2]
    if name not in methods.names() or key == "weights":
        return None
    method = methods.get(name)
    if method.card.takes != "weights" or key not in inspect.signature(method.fuse).parameters:
        return None
    from fusionlib.testing import hyperparameters, tiny_models

    try:
        method.fuse(*tiny_models(), **{**hyperparameters(method, 3), key: value})
    except ParameterError as error:
        return str(error)
    return None
