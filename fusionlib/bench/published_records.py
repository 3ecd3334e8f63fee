"""Records of ours that measured what somebody has published, and how far apart the two are."""

from __future__ import annotations

from collections.abc import Iterable

from fusionlib.bench import published
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.records import uses_defaults
from fusionlib.core import ParameterError, Record


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


def kept_there(entries: Iterable[published.Entry]) -> dict[str, float]:
    """Our card -> what its published line keeps of fine-tuning's gain, in percent, as ``scores.kept`` says of records.

    Args:
        entries: of one suite, with its pretrained and fine-tuned lines; those that no card of ours stands for, and
            references, are left out.
    Raises: ParameterError, if one of the two lines is missing.
    """
    means = {entry.card: entry.mean for entry in entries if entry.card is not None}
    missing = [name for name in ("pretrained", "finetuned") if name not in means]
    if missing:
        raise ParameterError(f"a share needs the published lines of {' and '.join(missing)}; pass the whole table.")
    low, gain = means["pretrained"], means["finetuned"] - means["pretrained"]
    return {card: 100 * (mean - low) / gain for card, mean in means.items() if card not in REFERENCES}


def _plain(task: str) -> str:
    return task.lower().replace("-", "_")
