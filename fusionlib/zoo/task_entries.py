"""The long form of own tasks: data, checkpoint and head of each task together, as a file of parameters writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, NamedTuple, TypeAlias

from fusionlib.core import ParameterError, UnknownName, suggest
from fusionlib.zoo.names import EMBEDDED_TASKS, check_task

KEYS = ("data", "checkpoint", "head")
Place: TypeAlias = str | PathLike[str]


class Entries(NamedTuple):
    """Tasks, checkpoints and heads, each apart; ``tasks`` is what was given where it was no mapping.

    A task in the mapping without data, None, is the embedded one of its name.
    """

    tasks: str | Iterable[str] | Mapping[str, Place | None]
    checkpoints: Mapping[str, Place] | None
    heads: Mapping[str, Any] | None


def unpack(
    tasks: str | Iterable[str] | Mapping[str, Any],
    checkpoints: Mapping[str, Place] | None = None,
    heads: Mapping[str, Any] | None = None,
) -> Entries:
    """Take ``{task: {data: ..., checkpoint: ..., head: ...}}`` apart; a task may also be just the place of its data.

    Raises: ParameterError, for a task that can't be called so, an unknown key, no string, or something that is said
        twice; UnknownName, if there is no data and no embedded task of the name.
    """
    if not isinstance(tasks, Mapping):
        return Entries(tasks, checkpoints, heads)
    places: dict[str, Place | None] = {}
    found: dict[str, dict[str, Any]] = {"checkpoint": dict(checkpoints or {}), "head": dict(heads or {})}
    for task, entry in tasks.items():
        check_task(task)
        if not isinstance(entry, Mapping):
            places[task] = _place(task, "data", entry)
            continue
        for key in entry:
            if key not in KEYS:
                raise ParameterError(f"task {task!r} has {key!r}, which is not known.{suggest(str(key), KEYS)}")
        if "data" not in entry and task not in EMBEDDED_TASKS:
            raise UnknownName(
                f"task {task!r} has no data, and no embedded task is called so: add `data:` with a folder or hub id."
                f"{suggest(str(task), EMBEDDED_TASKS)}"
            )
        places[task] = _place(task, "data", entry["data"]) if "data" in entry else None
        for key, held in found.items():
            if key in entry and task in held:
                raise ParameterError(f"the {key} of task {task!r} is given twice, in tasks= and in {key}s=.")
            if key in entry:
                held[task] = _place(task, key, entry[key])
    return Entries(places, found["checkpoint"] or checkpoints, found["head"] or heads)


def _place(task: str, key: str, value: Any) -> Place:
    if not isinstance(value, (str, PathLike)) or not str(value):
        raise ParameterError(
            f"the {key} of task {task!r} is {value!r}; give a folder, file or hub id, or {', '.join(KEYS)} below it."
        )
    return value
