"""What ``fusionlib train`` does: from a file of parameters and the name of a task to a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusionlib.core import FusionError, ParameterError, suggest
from fusionlib.press import params, project
from fusionlib.press.chapters import read_all
from fusionlib.press.params import Configuration
from fusionlib.press.values import SHARED, impossible

_KNOWN = (*SHARED, "pretrained")
_NEEDED = ("backbone", "tasks")


def train(name: str, overrides: Iterable[tuple[str, str]], task: str, out: str | None, seed: int | None) -> Path:
    """Make the fine-tune of a task of a configuration; its paths are relative to where the command runs.

    Args:
        name: of a file, or of one in ``params/``.
        overrides: (parameter, value as typed).
        seed: the first of the configuration's seeds if None.

    Raises: ParameterError, before anything is read, for a value that can't be or a key that nobody knows.
    """
    from fusionlib.zoo.training import NYUV2
    from fusionlib.zoo.training import train as make

    path = Path(name) if Path(name).is_file() else params.locate([name], project.find())[0]
    configuration = params.override(params.read(path), overrides)
    values = dict(configuration.values)
    for key in _NEEDED:
        if key not in values:
            raise ParameterError(f"{path.name} does not say {key}, which a fine-tune needs: add `{key}: ...`.")
    _check_keys(configuration)
    values["tasks"] = _without_checkpoints(values["tasks"])
    for key, value in values.items():
        problem = impossible(key, value, Path.cwd()) if key in SHARED and value != NYUV2 else None
        if problem:
            raise ParameterError(f"{configuration.where(key)}: {problem}")
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


def _check_keys(configuration: Configuration) -> None:
    """A file may be one for chapters, too, and hold their parameters; what neither they nor a fine-tune have is an
    error, and so is whatever is given with ``-p`` and does nothing here."""
    unknown = [key for key in configuration.values if key not in _KNOWN]
    if not unknown:
        return
    try:
        chapters = read_all(project.find())
    except FusionError:  # not inside of the book
        chapters = []
    of_chapters = {name for chapter in chapters for name in chapter.parameters}
    for key in unknown:
        if key not in configuration.lines or key not in of_chapters:
            raise ParameterError(f"{configuration.where(key)}: {key!r} is not known.{suggest(key, _KNOWN)}")


def _without_checkpoints(tasks: Any) -> Any:
    """A file may name the checkpoints that are still to be made."""
    if not isinstance(tasks, dict):
        return tasks
    return {
        task: {key: value for key, value in entry.items() if key != "checkpoint"} if isinstance(entry, dict) else entry
        for task, entry in tasks.items()
    }
