"""What ``fusionlib train`` does: from a file of parameters and the name of a task to a folder."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fusionlib.core import ParameterError, suggest
from fusionlib.press import params, project
from fusionlib.press.values import SHARED, impossible

_KNOWN = (*SHARED, "pretrained")
_NEEDED = ("backbone", "tasks")


def train(name: str, overrides: Iterable[tuple[str, str]], task: str, out: str | None, seed: int | None) -> Path:
    """Make the fine-tune of a task of a configuration; its paths are relative to where the command runs.

    Args:
        name: of a file, or of one in ``params/``.
        overrides: (parameter, value as typed).
        seed: the first of the configuration's seeds if None.

    Raises: ParameterError, before anything is read, for a value that can't be or a key that looks mistyped.
    """
    from fusionlib.zoo.training import NYUV2
    from fusionlib.zoo.training import train as make

    path = Path(name) if Path(name).is_file() else params.locate([name], project.find())[0]
    configuration = params.override(params.read(path), overrides)
    values = dict(configuration.values)
    for key in _NEEDED:
        if key not in values:
            raise ParameterError(f"{path.name} does not say {key}, which a fine-tune needs: add `{key}: ...`.")
    values["tasks"] = _without_checkpoints(values["tasks"])
    for key, value in values.items():
        where = configuration.where(key)
        if key not in _KNOWN and get_close_matches(key, _KNOWN, n=1):
            raise ParameterError(f"{where}: {key!r} is not known.{suggest(key, _KNOWN)}")
        problem = impossible(key, value, Path.cwd()) if key in SHARED and value != NYUV2 else None
        if problem:
            raise ParameterError(f"{where}: {problem}")
    return make(
        values["backbone"],
        values["tasks"],
        task,
        tuning=values.get("tuning", "full"),
        seed=values.get("seeds", [0])[0] if seed is None else seed,
        out=out,
        device=values.get("device", "auto"),
        pretrained=values.get("pretrained"),
    )


def _without_checkpoints(tasks: Any) -> Any:
    """A file may name the checkpoints that are still to be made."""
    if not isinstance(tasks, dict):
        return tasks
    return {
        task: {key: value for key, value in entry.items() if key != "checkpoint"} if isinstance(entry, dict) else entry
        for task, entry in tasks.items()
    }
