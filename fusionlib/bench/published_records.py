"""Records of ours that measured what somebody has published, and how far apart the two are."""

from __future__ import annotations

from collections.abc import Iterable

from fusionlib.bench import published
from fusionlib.bench.records import uses_defaults
from fusionlib.core import Record


def reproduced(entry: published.Entry, records: Iterable[Record]) -> Record | None:
    """The record of ours that measured what a published entry says, None if there is none.

    The same backbone, tuning and tasks, all test examples, our card for the method, and the hyper-parameters that
    the publication names. Of several the newest counts, one with defaults before one with others.
    """
    facts, known = published.suite_facts(entry.suite), published.known_methods().get(entry.method)
    if known is None or "backbone" not in facts:
        return None
    # the same models under their hub id and under the name that load_suite has for the family
    named = {facts["backbone"], facts["backbone"].rpartition("/")[2]}
    asked = dict(known.get("hyperparameters", {}))
    if "lambda" in known and "lambda=" in entry.setting:
        asked[known["lambda"]] = published.number(entry, "lambda")
    tasks = {_plain(task) for task in entry.values}
    found = [
        record
        for record in records
        if record.method == known["card"]
        and record.backbone in named
        and record.tuning == facts["tuning"]
        and (record.split, record.limit) == ("test", None)
        and {_plain(task) for task in record.tasks} == tasks
        and all(record.hyperparameters.get(name) == value for name, value in asked.items())
    ]
    return max(found, key=lambda r: (uses_defaults(r), r.provenance["created"])) if found else None


def differences(entry: published.Entry, record: Record) -> dict[str, float]:
    """Task -> our accuracy minus the published one, in points, under the published names of the tasks."""
    ours = {_plain(task): 100 * value for task, value in record.accuracy.items()}
    return {task: ours[_plain(task)] - value for task, value in entry.values.items()}


def _plain(task: str) -> str:
    return task.lower().replace("-", "_")
