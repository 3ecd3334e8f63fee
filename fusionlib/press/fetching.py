"""What ``fusionlib fetch`` must know of configurations before it asks the hub about them."""

from __future__ import annotations

from collections.abc import Iterable

from fusionlib.core import ParameterError, suggest
from fusionlib.press.params import Configuration
from fusionlib.press.values import SHARED


def check(configurations: Iterable[Configuration]) -> None:
    """Refuse a backbone or tasks of another type than the hub can be asked for, and unknown keys of ``-p``.

    What they name is not looked for: data and models of one's own need not be there yet.

    Raises: ParameterError.
    """
    for configuration in configurations:
        values = configuration.values
        for key in values:
            if key not in SHARED and key not in configuration.lines:
                raise ParameterError(f"-p: {key!r} is not known.{suggest(key, SHARED)}")
        if "backbone" in values and (not isinstance(values["backbone"], str) or not values["backbone"]):
            raise ParameterError(
                f"{configuration.where('backbone')}: backbone={values['backbone']!r} must be a string: a name in the "
                "zoo or a hub id."
            )
        tasks = values.get("tasks", [])
        if not isinstance(tasks, str | list | dict) or not all(isinstance(task, str) for task in tasks):
            raise ParameterError(
                f"{configuration.where('tasks')}: tasks={tasks!r} must be the name of a set, a list of names, or a "
                "mapping of names to data."
            )
        tuning = values.get("tuning", "full")
        if not isinstance(tuning, str):
            raise ParameterError(f"{configuration.where('tuning')}: tuning={tuning!r} must be a string, such as lora.")
