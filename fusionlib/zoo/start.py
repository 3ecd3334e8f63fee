"""What a suite starts from: the pretrained model, and the tasks as this model is measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike

from fusionlib.core import ParameterError
from fusionlib.zoo import names
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.embedded import check_readable, embedded_backbone
from fusionlib.zoo.hub import loading
from fusionlib.zoo.task import Task, embedded_task
from fusionlib.zoo.task_entries import Place


def read_tasks(tasks: str | Iterable[str] | Mapping[str, Place | None]) -> tuple[tuple[Task, ...], str | None]:
    """Tasks that are not published, and the name of the set they are, or None."""
    if isinstance(tasks, Mapping):
        from fusionlib.zoo.own_tasks import own_task

        names.check_distinct(tuple(tasks))
        places = tasks.items()
        return tuple(embedded_task(name) if path is None else own_task(name, path) for name, path in places), None
    chosen, tasks_name = names.resolve_tasks(tasks)
    return tuple(embedded_task(name) for name in chosen), tasks_name


def read_start(
    backbone: str | PathLike[str],
    tasks: tuple[Task, ...],
    asked: loading.Asked,
    tuning: str,
    published_tuning: str,
    *,
    progress: bool,
) -> tuple[loading.Published | None, Backbone, tuple[Task, ...]]:
    """What was published of it, if anything; the pretrained model; and the tasks, as this model is measured on them.

    Args:
        tasks: those that are not published.
        asked: what is published of backbone and tasks.
        tuning: decides what is embedded: "l-lora" is linearised in its adapter.
        published_tuning: of the fine-tunes that are read along, "none" for none.
    """
    published = None
    if asked.names or asked.family:
        published = loading.load(asked, published_tuning, progress=progress)
        tasks = tasks or published.tasks
    base = (published and published.base) or _backbone(backbone, tuning)
    _check_modality(base, tasks)
    if base.metric != "accuracy":
        tasks = tuple(replace(task, metric=base.metric) if task.metric == "accuracy" else task for task in tasks)
    return published, base, tasks


def _backbone(backbone: str | PathLike[str], tuning: str) -> Backbone:
    if backbone in names.EMBEDDED_BACKBONES:
        return embedded_backbone(str(backbone), tuning)
    from fusionlib.zoo.own_models import own_backbone

    return own_backbone(backbone)


def _check_modality(base: Backbone, tasks: tuple[Task, ...]) -> None:
    if base.name in names.EMBEDDED_BACKBONES:
        check_readable(base.name, tuple(task.name for task in tasks if task.embedded))
    odd = [task.name for task in tasks if task.modality != base.preprocess.modality]
    if odd:
        kind = base.preprocess.modality
        raise ParameterError(f"{base.name!r} reads {kind}s, and {', '.join(odd)} can't be read as {kind}s.")
