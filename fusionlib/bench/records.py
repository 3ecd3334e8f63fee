"""The record store: append-only JSON lines, one file per backbone, tasks and tuning.

Records of the embedded suites live in the user's cache and are remade at will. Records that cannot be remade
everywhere (a GPU, a model hub) are committed under ``book/records/`` and carry ``origin = "committed"``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from fusionlib import methods
from fusionlib.bench.log import logger
from fusionlib.bench.provenance import REFERENCES, digest, source_hash
from fusionlib.core import CheckpointError, ParameterError, Record
from fusionlib.zoo import names
from fusionlib.zoo.files import home

# file -> (bytes read so far, record by key); files only grow, so a change is read from where it began
_read: dict[Path, tuple[int, dict[str, Record]]] = {}


def folder() -> Path:
    """Where this user's records are."""
    return home() / "records"


def append(record: Record) -> None:
    """Adds a record, durably and all or nothing; several processes may do so at once."""
    path = _file(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dataclasses.asdict(record), sort_keys=True).encode() + b"\n"
    with FileLock(f"{path}.lock"):
        _set_torn_line_aside(path)
        with open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def find(record_key: str, like: Record) -> Record | None:
    """The stored record of this key, looked for where ``like`` would be stored."""
    return _records_in(_file(like)).get(record_key)


def trials(of: Record) -> list[Record]:
    """The stored validation records of a record's method and suite, counted on whatever examples."""
    return [
        record
        for record in _records_in(_file(of)).values()
        if (record.method, record.split) == (of.method, "val")
        and record.provenance["suite"] == of.provenance["suite"]
        and record.provenance["source"] == of.provenance["source"]
    ]


def read(
    *,
    backbone: str | None = None,
    tasks: str | Sequence[str] | None = None,
    tuning: str | None = None,
    split: str = "test",
    limit: int | None = None,
    current: bool = True,
) -> list[Record]:
    """Stored records, oldest first; None does not filter, except that ``limit=None`` means all examples.

    Args:
        tasks: a named set, or task names in order, embedded or your own.
        current: only what the present code and data would give: records made by the same source, and of
            each suite those with the checkpoints and data of its newest record.
    """
    wanted = names.resolve_tasks(tasks)[0] if isinstance(tasks, str) else tasks
    found = [
        record
        for record in _all()
        if (backbone is None or record.backbone == backbone)
        and (wanted is None or record.tasks == tuple(wanted))
        and (tuning is None or record.tuning == tuning)
        and (record.split, record.limit) == (split, limit)
    ]
    found.sort(key=lambda record: record.provenance["created"])
    return _current(found) if current else found


def comparable(records: Iterable[Record]) -> list[Record]:
    """Those that may stand in a leaderboard: references, defaults, and what was selected on validation.

    Trials on the test split with other hyper-parameters (an ablation, a failure) are left out: showing the
    best of them would be selection on test data.
    """
    return [r for r in records if r.method in REFERENCES or r.selected_on is not None or uses_defaults(r)]


def preferred(records: Iterable[Record]) -> list[Record]:
    """Of each method what was selected on validation, and its other records only if nothing was selected."""
    records = list(records)
    selected = {record.method for record in records if record.selected_on is not None}
    return [r for r in records if r.selected_on is not None or r.method not in selected]


def uses_defaults(record: Record) -> bool:
    """Whether every hyper-parameter has its default; False if one has no default."""
    if record.method not in methods.names():
        return False
    parameters = inspect.signature(methods.get(record.method).fuse).parameters
    return all(
        name in parameters and json_value(parameters[name].default) == value
        for name, value in record.hyperparameters.items()
    )


def json_value(value: Any) -> Any:
    """The value as it will come back from JSON: tuples become lists, numpy and torch scalars numbers.

    Raises: ParameterError for what JSON has no word for.
    """
    if value is inspect.Parameter.empty:
        return "required"
    return json.loads(json.dumps(value, default=_numbers))


def _numbers(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise ParameterError(
            f"{value!r} can't be kept in a record: a hyper-parameter is a number, a string, True, False or None, or a "
            "list or mapping of these."
        )
    return value.tolist()


def _current(records: Iterable[Record]) -> list[Record]:
    newest: dict[tuple, str] = {}
    kept = [r for r in records if _is_known(r) and r.provenance["source"] == source_hash(r.method)]
    for record in kept:
        newest[_suite_of(record)] = record.provenance["suite"]
    return [r for r in kept if r.provenance["suite"] == newest[_suite_of(r)]]


def _is_known(record: Record) -> bool:
    return record.method in REFERENCES or record.method in methods.names()


def _suite_of(record: Record) -> tuple:
    return record.backbone, record.tasks, record.tuning, record.seed


def _all() -> Iterable[Record]:
    for path in sorted(folder().glob("*.jsonl")):
        yield from _records_in(path).values()
    for path in _committed():
        for record in _records_in(path).values():
            yield dataclasses.replace(record, provenance={**record.provenance, "origin": "committed"})


def _committed() -> list[Path]:
    """Files under ``book/records`` of the project one is in."""
    for parent in (Path.cwd(), *Path.cwd().parents):
        if (parent / "_config.yml").is_file():
            return sorted((parent / "book" / "records").glob("*.jsonl"))
    return []


def _file(record: Record) -> Path:
    # A readable beginning, and a hash because a backbone may be a path and task names may be long.
    identity = digest([record.backbone, list(record.tasks), record.tuning])
    start = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(record.backbone).name)[:40]
    return folder() / f"{start}-{len(record.tasks)}-tasks-{record.tuning}-{identity}.jsonl"


def _records_in(path: Path) -> dict[str, Record]:
    size = path.stat().st_size if path.is_file() else 0
    offset, records = _read.get(path, (0, {}))
    if size < offset:  # deleted or replaced meanwhile
        offset, records = 0, {}
    if size > offset:
        with open(path, "rb") as file:
            file.seek(offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]  # a torn last line is no record; see _set_torn_line_aside
        for line in complete.splitlines():
            record = _parse(line, path)
            records[record.key] = record
        offset += len(complete)
    _read[path] = offset, records
    return records


def _parse(line: bytes, path: Path) -> Record:
    try:
        fields = json.loads(line)
        # keys are sorted in the file; the tasks' own order is that of the tables' columns
        fields["counts"] = {task: tuple(fields["counts"][task]) for task in fields["tasks"]}
        return Record(**{**fields, "tasks": tuple(fields["tasks"]), "needs": tuple(fields["needs"])})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds a line that is no record ({error}): {line[:80]!r}. "
            "Delete that line, or the file: the records are measured again when they are needed."
        ) from error


def _set_torn_line_aside(path: Path) -> None:
    """If a process was killed in the middle of a write, moves the half line to a file of its own."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        aside = path.with_suffix(".torn")
        with open(aside, "ab") as torn:
            torn.write(content[end:] + b"\n")
        file.truncate(end)
    logger.warning("a half-written record at the end of %s was moved to %s", path, aside)
