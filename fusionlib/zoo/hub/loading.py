"""A published suite from local folders: the backbone, its fine-tunes, and the heads that came with them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from fusionlib.core import ParameterError, StateDict
from fusionlib.zoo import names as names_of
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.gpt2 import Gpt2Backbone
from fusionlib.zoo.hub.needing import data_repo, repos_of, require
from fusionlib.zoo.hub.repos import Repo
from fusionlib.zoo.hub.table import Family, datasets, families, resolve, sets
from fusionlib.zoo.hub.tasks import hub_task
from fusionlib.zoo.locate import locate
from fusionlib.zoo.t5 import T5Backbone
from fusionlib.zoo.task import Task

# backbone, task -> weights, task -> weight of its head
Read: TypeAlias = tuple[Backbone, dict[str, StateDict], dict[str, Tensor]]


class Asked(NamedTuple):
    """What of a suite is published.

    Attributes:
        family: of the backbone, None if it is another.
        names: the tasks, none if they are others.
        tasks_name: the named set they are, or None.
    """

    family: Family | None
    names: tuple[str, ...]
    tasks_name: str | None


class Published(NamedTuple):
    """What was loaded.

    Attributes:
        base: the pretrained model, None if the backbone is another.
        tasks: in the order asked for; none if they are others.
        finetuned: task -> weights.
        heads: task -> weight of the head that was trained along; empty where heads are not trained.
    """

    base: Backbone | None
    tasks: tuple[Task, ...]
    finetuned: dict[str, StateDict]
    heads: dict[str, Tensor]


def asked(backbone: str | PathLike[str], tasks: str | Iterable[str] | Mapping[str, Any]) -> Asked:
    """What of a suite is published; nothing is fetched.

    Raises: UnknownName, ParameterError.
    """
    family = families().get(str(backbone))
    if isinstance(tasks, Mapping):
        return Asked(family, (), None)
    if isinstance(tasks, str):
        names, tasks_name = names_of.resolve_tasks(tasks)
        return Asked(family, names, tasks_name) if tasks in sets() else Asked(family, (), None)
    chosen = tuple(tasks)
    if not names_of.published(chosen) and (family is None or any(name not in datasets() for name in chosen)):
        return Asked(family, (), None)
    names_of.check_distinct(chosen)
    return Asked(family, *resolve(chosen))


def load(asked: Asked, tuning: str, *, progress: bool) -> Published:
    """Fetch what is missing, then read everything.

    Args:
        tuning: of the fine-tunes to load with a published backbone, "none" for none.

    Raises: ParameterError, CheckpointError, KeyMismatch.
    """
    family, names = asked.family, asked.names
    data = [datasets()[name] for name in names]
    needed = repos_of(family, data, tuning)
    folders = require(needed, command=_command(asked, tuning), progress=progress)
    tasks = tuple(hub_task(each, folders[data_repo(each)]) for each in data)
    if family is None:
        return Published(None, tasks, {}, {})
    models = {name: folders[Repo(family.finetuned(name, tuning))] for name in names} if tuning != "none" else {}
    if family.kind == "t5":  # CoLA's published numbers are exact matches there, as those of the other tasks
        tasks = tuple(dataclasses.replace(t, metric="accuracy") if t.metric == "matthews" else t for t in tasks)
    base, finetuned, heads = _READERS[family.kind](folders[Repo(family.pretrained)], models)
    return Published(dataclasses.replace(base, name=family.name), tasks, finetuned, heads)


def own_finetuned(
    base: Backbone, tasks: Iterable[Task], checkpoints: Mapping[str, str | PathLike[str]]
) -> tuple[dict[str, StateDict], dict[str, Tensor]]:
    """Task -> weights, and task -> weight of its head where heads are trained, of a user's fine-tunes of GPT-2 or T5.

    Raises: ParameterError if a task has no checkpoint; CheckpointError, KeyMismatch, UnknownName.
    """
    from fusionlib.zoo.hub import flan_t5, gpt2

    states: dict[str, StateDict] = {}
    heads: dict[str, Tensor] = {}
    for task in (task.name for task in tasks):
        if task not in checkpoints:
            raise ParameterError(
                f"checkpoints has nothing for {task}. Give one checkpoint per task, or leave the task out."
            )
        folder = locate(checkpoints[task], f"checkpoint of task {task!r}")
        if isinstance(base, Gpt2Backbone):
            states[task], heads[task] = gpt2.read_finetuned(base, task, folder)
        else:
            assert isinstance(base, T5Backbone)
            states[task] = flan_t5.read_finetuned(base, folder)
    return states, heads


def _command(asked: Asked, tuning: str) -> str:
    """What fetches all that a suite needs."""
    tasks = asked.tasks_name or f"[{', '.join(asked.names)}]"
    given = {
        "backbone": asked.family.name if asked.family else "",
        "tasks": tasks if asked.names else "",
        "tuning": tuning,
    }
    return "fusionlib fetch " + " ".join(f"-p {key} {shlex.quote(value)}" for key, value in given.items() if value)


def _clip(pretrained: Path, models: Mapping[str, Path]) -> Read:
    from fusionlib.zoo.own_models import own_backbone, own_finetuned

    base = own_backbone(pretrained)
    return base, own_finetuned(base, tuple(models), models), {}


def _gpt2(pretrained: Path, models: Mapping[str, Path]) -> Read:
    from fusionlib.zoo.hub.gpt2 import read

    return read(pretrained, models)


def _t5(pretrained: Path, models: Mapping[str, Path]) -> Read:
    from fusionlib.zoo.hub.flan_t5 import read

    return read(pretrained, models)


_READERS: dict[str, Callable[[Path, Mapping[str, Path]], Read]] = {"clip": _clip, "gpt2": _gpt2, "t5": _t5}
