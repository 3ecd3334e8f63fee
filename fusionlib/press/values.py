"""Which values a parameter can have: by type for a chapter's own, by meaning for the six that all chapters share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusionlib.core import FusionError, suggest

SHARED = ("backbone", "tasks", "tuning", "seeds", "device", "eval_limit")

_KINDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def mismatch(value: Any, default: Any) -> str | None:
    """What a value should be, judged by the default it replaces; None if it fits.

    An integer is fine where the default is a float, not the other way round. None is allowed only where it is
    the default, and there anything else is allowed too. Elements of a list are judged by the first of the default.
    """
    if default is None:
        return None
    kind = type(default) if type(default) in _KINDS else list
    if kind is float and isinstance(value, str) and _is_number(value):
        return f"a number, but YAML reads {value} as a string: write it with a point and a sign, 1.0e-3"
    allowed = (int, float) if kind is float else (list, tuple) if kind is list else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        return _KINDS[kind]
    if isinstance(value, (list, tuple)) and default:
        wrong = next((text for item in value if (text := mismatch(item, default[0]))), None)
        return f"a list in which every element is {wrong}" if wrong else None
    return None


def impossible(key: str, value: Any, root: Path) -> str | None:
    """Why a value of one of the six shared parameters cannot work, as a finished sentence; None if it can.

    Args:
        key: one of ``SHARED``.
        value: any YAML value.
        root: the folder in which notebooks run; relative paths are relative to it.
    """
    from fusionlib.zoo import names

    checks: dict[str, Callable[[], object]] = {
        "backbone": lambda: _backbone(value, root),
        "tasks": lambda: _tasks(value, root),
        "tuning": lambda: names.check_tuning(value),
        "seeds": lambda: _seeds(value),
        "device": lambda: names.resolve_device(value),
        "eval_limit": lambda: _eval_limit(value),
    }
    try:
        checks[key]()
    except FusionError as error:
        return str(error)
    return None


def _backbone(value: Any, root: Path) -> None:
    from fusionlib.zoo.hub.table import families
    from fusionlib.zoo.names import EMBEDDED_BACKBONES

    known = (*EMBEDDED_BACKBONES, *families())
    if not isinstance(value, str) or not value:
        raise FusionError(f"backbone={value!r} must be a string: a name in the zoo, a hub id, or a local folder.")
    if value in known or (root / Path(value).expanduser()).is_dir():
        return
    if value[0] in "./~" or "\\" in value or value.count("/") > 1:
        raise FusionError(f"backbone={value!r} is written as a folder, and there is no folder of that name.")
    if value.count("/") != 1:
        raise FusionError(
            f"backbone={value!r} is no name in the zoo, no local folder, and no hub id (owner/name)."
            f"{suggest(value, known)}"
        )


def _tasks(value: Any, root: Path) -> None:
    from fusionlib.zoo.names import resolve_tasks
    from fusionlib.zoo.task_entries import unpack

    if isinstance(value, dict):
        if not value or any(type(task) is not str for task in value):
            raise FusionError(f"tasks={value!r} must name at least one task, each followed by the folder of its data.")
        places, checkpoints, heads = unpack(value)
        assert isinstance(places, dict)
        for what, held in (("data", places), ("checkpoint", checkpoints or {}), ("head", heads or {})):
            for task, path in held.items():
                if path is not None and not _findable(str(path), root):
                    raise FusionError(
                        f"tasks: the {what} of {task!r} should be at {path!r}, and there is nothing there."
                    )
        return
    if not isinstance(value, (str, list)) or (isinstance(value, list) and any(type(v) is not str for v in value)):
        raise FusionError(f"tasks={value!r} must be the name of a set or a list of names of tasks.")
    resolve_tasks(value)


def _findable(path: str, root: Path) -> bool:
    """Whether something is there, or it is written as a hub id or a name of open_clip's."""
    from fusionlib.zoo.locate import is_hub_id

    return (root / Path(path).expanduser()).exists() or is_hub_id(path) or ":" in path


def _seeds(value: Any) -> None:
    from fusionlib.zoo.names import check_seed

    if not isinstance(value, list) or not value:
        raise FusionError(f"seeds={value!r} must be a list of at least one integer, as in seeds: [0].")
    for seed in value:
        check_seed(seed)
    if len(set(value)) < len(value):
        raise FusionError(f"seeds={value!r} holds a seed twice: list each seed once.")


def _eval_limit(value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise FusionError(f"eval_limit={value!r} must be a whole number of examples, 1 or more, or null for all.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
