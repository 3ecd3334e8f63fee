"""Which chapters run for which configurations, and which of these runs are up to date already."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusionlib.press import keys
from fusionlib.press.chapters import Chapter
from fusionlib.press.files import digest, read_json
from fusionlib.press.params import Configuration
from fusionlib.press.project import Project, status_file

_CHANGES = {
    "notebook": "the notebook has changed",
    "parameters": "the parameters have changed",
    "library": "fusionlib has changed",
    "packages": "versions of packages have changed",
    "suite": "the suite or the device has changed",
    "records": "the records have changed",
}


@dataclass(frozen=True)
class Job:
    """One chapter for one configuration.

    Attributes:
        id: its number in the plan.
        chapter: the chapter.
        configuration: name of the configuration.
        values: all the chapter's parameters with their values, defaults included.
        given: those that differ from the notebook's own, which papermill injects.
        executed: where the executed copy goes.
        parts: part -> hash of all that the result depends on.
        why: why it must run; None if it is up to date.
        expected: seconds it took last time; None if it has never run.
    """

    id: int
    chapter: Chapter
    configuration: str
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    executed: Path
    parts: Mapping[str, str]
    why: str | None
    expected: float | None

    @property
    def label(self) -> str:
        """How it is called in the display."""
        return f"{self.chapter.name} ({self.configuration})"

    @property
    def key(self) -> str:
        """Hash of all that the result depends on."""
        return digest(dict(self.parts))

    def order(self, root: Path) -> dict[str, Any]:
        """What the process that runs it is told."""
        return {
            "id": self.id,
            "notebook": str(self.chapter.path),
            "executed": str(self.executed),
            "root": str(root),
            "parameters": dict(self.given),
            "status": {
                "key": self.key,
                "chapter": self.chapter.name,
                "configuration": self.configuration,
                "parameters": dict(self.values),
                "parts": dict(self.parts),
            },
        }


def make(
    chapters: Iterable[Chapter], configurations: Sequence[Configuration], project: Project, *, force: bool
) -> list[Job]:
    """All jobs, those of chapters that run last at the end.

    Args:
        chapters: the selected ones.
        configurations: the first counts as the first configuration of the run.
        project: where everything is.
        force: nothing counts as up to date.
    """
    common = keys.common()
    number = itertools.count()
    jobs = []
    # suites first: they take longest, may make fine-tunes, and must not be what is waited for at the end
    for chapter in sorted(chapters, key=lambda c: (c.last, not c.name.startswith("suites/"), c.name)):
        for configuration in _chosen(chapter, configurations):
            values = {**chapter.parameters}
            values |= {
                key: value for key, value in configuration.values.items() if key in values and key not in chapter.keeps
            }
            executed = project.executed_copy(configuration.name, chapter.name)
            parts = keys.parts(chapter, values, common, project)
            status = read_json(status_file(executed))
            jobs.append(
                Job(
                    id=next(number),
                    chapter=chapter,
                    configuration=configuration.name,
                    values=values,
                    given={key: value for key, value in values.items() if value != chapter.parameters[key]},
                    executed=executed,
                    parts=parts,
                    why="--force" if force else _why(parts, status, executed),
                    expected=status.get("seconds"),
                )
            )
    return jobs


def _chosen(chapter: Chapter, configurations: Sequence[Configuration]) -> Iterable[Configuration]:
    """Those configurations of a run that a chapter runs for."""
    match chapter.configurations:
        case "all":
            return configurations
        case "first":
            return configurations[:1]
        case "backbones":
            first: dict[str, Configuration] = {}
            for configuration in configurations:
                first.setdefault(str(configuration.values.get("backbone")), configuration)
            return first.values()
        case names:
            return [configuration for configuration in configurations if configuration.name in names]


def with_current_records(job: Job, project: Project, *, force: bool) -> Job:
    """A job that runs last, planned again now that the others have written their records."""
    parts = {**job.parts, "records": keys.records(project)}
    why = "--force" if force else _why(parts, read_json(status_file(job.executed)), job.executed)
    return replace(job, parts=parts, why=why)


def _why(parts: Mapping[str, str], status: Mapping[str, Any], executed: Path) -> str | None:
    if status.get("status") == "failed":
        return "the last run failed"
    if not status or not (executed.is_file() or status.get("status") == "skipped"):
        return "it has not been run"
    before = status.get("parts", {})
    changed = [sentence for part, sentence in _CHANGES.items() if before.get(part) != parts.get(part)]
    return "; ".join(changed) or None
