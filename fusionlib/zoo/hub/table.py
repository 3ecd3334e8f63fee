"""What ``data/hub.yaml`` says: families of published models, data sets, and named sets of tasks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionlib.core import ParameterError, UnknownName, suggest

_DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Family:
    """Published fine-tunes of one pretrained model.

    Attributes:
        name: what ``load_suite`` knows it by.
        kind: "clip", "gpt2" or "t5"; decides how its files are read.
        pretrained: hub id.
        tunings: tuning -> (tasks it was published for, pattern of the ids with ``{task}``).
    """

    name: str
    kind: str
    pretrained: str
    tunings: Mapping[str, tuple[tuple[str, ...], str]] = field(repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks for which there is a fine-tune of some kind."""
        return tuple(dict.fromkeys(task for tasks, _ in self.tunings.values() for task in tasks))

    def finetuned(self, task: str, tuning: str) -> str:
        """Hub id of a fine-tune; ParameterError if none was published."""
        if tuning not in self.tunings:
            raise ParameterError(
                f"no {tuning!r} fine-tunes of {self.name} were published. Published: {', '.join(self.tunings)}; "
                'tuning="none" loads the pretrained model alone.'
            )
        tasks, pattern = self.tunings[tuning]
        if task not in tasks:
            raise ParameterError(
                f"no {tuning!r} fine-tune of {self.name} was published for task {task!r}.{suggest(task, tasks)}"
            )
        return pattern.format(task=task)


@dataclass(frozen=True)
class DataSet:
    """A published data set and how it becomes a task.

    Attributes:
        name: of the task.
        id: on the hub.
        config: of its configurations, None if it has one alone.
        test: the split that is evaluated.
        sizes: examples of (train, test), None where not known.
        columns: our name -> their names, of which the first that is there counts.
        classes: names in the order of the labels; where the label is a number, how numbers are written.
        prompts: the same as they are written into templates.
        templates: zero-shot prompts with one ``{}``; empty for texts.
        metric: a name in ``fusionlib.bench.meters.METERS``.
        prompt: for text-to-text models, with names of columns in braces; empty for pictures.
    """

    name: str
    id: str
    config: str | None
    test: str
    sizes: tuple[int | None, int]
    columns: Mapping[str, tuple[str, ...]] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    templates: tuple[str, ...] = field(repr=False)
    metric: str = "accuracy"
    prompt: str = field(default="", repr=False)

    @property
    def modality(self) -> str:
        """Of its examples, "image" or "text"."""
        return "image" if "image" in self.columns else "text"


@functools.cache
def families() -> dict[str, Family]:
    """Family name -> what was published of it, in the table's order."""
    found = {}
    for name, facts in _table()["families"].items():
        tunings = {tuning: (sets()[entry["tasks"]], entry["id"]) for tuning, entry in facts.pop("tunings").items()}
        found[name] = Family(name, tunings=tunings, **facts)
    return found


@functools.cache
def datasets() -> dict[str, DataSet]:
    """Task name -> data set, in the table's order."""
    import yaml

    words = yaml.safe_load((_DATA / "classnames.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, facts in _table()["datasets"].items():
        classes, templates = facts["classes"], ()
        if isinstance(classes, int):
            classes, templates = words[name]["names"].split("; "), words[name]["templates"]
            assert len(classes) == facts["classes"], f"classnames.yaml has {len(classes)} classes for {name}"
        elif isinstance(classes, dict):
            first, last, step = classes["numbers"]
            classes = [f"{first + index * step:.1f}" for index in range(round((last - first) / step) + 1)]
        columns = facts.get("columns") or {"image": "image"}
        columns = {"label": "label", **columns}
        found[name] = DataSet(
            name=name,
            id=facts["id"],
            config=facts.get("config"),
            test=facts.get("test", "test"),
            sizes=tuple(facts["sizes"]),
            columns={ours: (its,) if isinstance(its, str) else tuple(its) for ours, its in columns.items()},
            classes=tuple(classes),
            templates=tuple(templates),
            metric=facts.get("metric", "accuracy"),
            prompt=facts.get("prompt", ""),
        )
    return found


@functools.cache
def sets() -> dict[str, tuple[str, ...]]:
    """Name of a set -> its tasks, in order."""
    found: dict[str, tuple[str, ...]] = {}
    for name, members in _table()["sets"].items():
        found[name] = tuple(task for member in members for task in found.get(member, (member,)))
    return found


def resolve(tasks: str | Iterable[str]) -> tuple[tuple[str, ...], str | None]:
    """Task names, in order, and the name of their set (None if they are no named set).

    Raises: UnknownName: the table has no such set or task.
    """
    if isinstance(tasks, str):
        if tasks not in sets():
            raise UnknownName(f"no set of published tasks is called {tasks!r}.{suggest(tasks, sets())}")
        return sets()[tasks], tasks
    names = tuple(tasks)
    for name in names:
        if name not in datasets():
            raise UnknownName(f"no published task is called {name!r}.{suggest(str(name), datasets())}")
    return names, next((key for key, members in sets().items() if members == names), None)


@functools.cache
def _table() -> dict[str, Any]:
    import yaml

    return yaml.safe_load((_DATA / "hub.yaml").read_text(encoding="utf-8"))
