"""The six parameters that all chapters share, and which values of them can work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusionlib.core import FusionError, suggest
from fusionlib.ops.values import shown

SHARED = ("backbone", "tasks", "tuning", "seeds", "device", "eval_limit")

_LONGEST = 4096  # letters of a path, on Linux
_LARGEST = 2**63 - 1  # what torch takes for a seed


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
        raise FusionError(f"backbone={shown(value)} must be a string: a name in the zoo, a hub id, or a local folder.")
    if value in known or _at(value, root).is_dir():
        return
    if value[0] in "./~" or "\\" in value or value.count("/") > 1:
        raise FusionError(f"backbone={shown(value)} is written as a folder, and there is no folder of that name.")
    if value.count("/") != 1:
        raise FusionError(
            f"backbone={shown(value)} is no name in the zoo, no local folder, and no hub id (owner/name)."
            f"{suggest(value, known)}"
        )


def _tasks(value: Any, root: Path) -> None:
    from fusionlib.zoo.names import resolve_tasks
    from fusionlib.zoo.task_entries import unpack

    if isinstance(value, dict):
        if not value or any(type(task) is not str for task in value):
            raise FusionError(
                f"tasks={shown(value)} must name at least one task, each followed by the folder of its data."
            )
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
        raise FusionError(f"tasks={shown(value)} must be the name of a set or a list of names of tasks.")
    resolve_tasks(value)


def _findable(path: str, root: Path) -> bool:
    """Whether something is there, or it is written as a hub id or a name of open_clip's."""
    from fusionlib.zoo.locate import is_hub_id

    return _at(path, root).exists() or is_hub_id(path) or ":" in path


def _at(text: str, root: Path) -> Path:
    """Where a path that a user wrote leads; it can be looked for there."""
    if len(text) > _LONGEST or "\0" in text:
        raise FusionError(f"{shown(text)} can be no path: it is too long, or holds a NUL. Write the path of a folder.")
    try:
        found = root / Path(text).expanduser()
        found.exists()
    except RuntimeError:
        raise FusionError(f"{text!r}: there is no home folder of that user. Write the path in full.") from None
    except OSError as error:
        raise FusionError(f"{shown(text)} can't be looked for: {error.strerror or error}.") from None
    return found


def _seeds(value: Any) -> None:
    from fusionlib.zoo.names import check_seed

    if not isinstance(value, list) or not value:
        raise FusionError(f"seeds={shown(value)} must be a list of at least one integer, as in seeds: [0].")
    for seed in value:
        if check_seed(seed) > _LARGEST:
            raise FusionError(f"seed={shown(seed)} is too large; use one up to 2**63 - 1.")
    if len(set(value)) < len(value):
        raise FusionError(f"seeds={shown(value)} holds a seed twice: list each seed once.")


def _eval_limit(value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise FusionError(f"eval_limit={shown(value)} must be a whole number of examples, 1 or more, or null for all.")
