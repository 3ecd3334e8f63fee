"""Values that a chapter would refuse are found before a kernel starts.

Its parameters cell says what it allows, the signature of its method says the same of hyper-parameters, and what depends
on several of them shows when models of a few weights are fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionlib import methods
from fusionlib.bench.declared import refusal
from fusionlib.core import ParameterError
from fusionlib.ops.values import allowed, bind
from fusionlib.press.chapters import Chapter


def out_of_range(chapter: Chapter, key: str, given: Mapping[str, Any]) -> str | None:
    """What the chapter or its method says against the value of one of its parameters; None if it takes it.

    Methods that fuse modules are not tried: that would need data. ``weights`` has one value per model, and how many
    models there will be is known only in the chapter.

    Args:
        given: the configuration, which has the key.
    """
    value = given[key]
    refused = refusal(key, {**chapter.parameters, **given}, chapter.declared)
    name = chapter.name.rpartition("/")[2]
    if refused or name not in methods.names():
        return refused
    method = methods.get(name)
    known = allowed(method.fuse)
    if key not in known:
        return None
    try:
        bind(known[key], value, key)
    except ParameterError as error:
        return str(error)
    if method.card.takes != "weights" or key == "weights":
        return None
    from fusionlib.testing import hyperparameters, tiny_models

    try:
        method.fuse(*tiny_models(), **{**hyperparameters(method, 3), key: value})
    except ParameterError as error:
        return str(error)
    return None
