"""The record store: append-only JSON lines, one file per backbone, tasks and tuning.

Records of the embedded suites live in the user's cache and are remade at will. Records that cannot be remade
everywhere (a GPU, a model hub) are committed under ``book/records/`` and carry ``origin = "committed"``.
A line that was changed by hand, or was written before lines had checksums, is passed over, and the log says so.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from fusionlib import methods
from fusionlib.bench.log import logger
from fusionlib.bench.provenance import REFERENCES, digest, source_hash
from fusionlib.bench.record_lines import NoRecord, from_line, to_line
from fusionlib.core import CheckpointError, ParameterError, Record
from fusionlib.zoo import names
from fusionlib.zoo.files import home

_ENOUGH = 5  # lines that are named one by one


class _Known(NamedTuple):
    """What has been read of a file: so many bytes and lines, the last bytes of these, its time, and the records."""

    size: int
    lines: int
    end: bytes
    time: int
    records: dict[str, Record]


# files only grow, unless somebody edits them; so a change is read from where it began
_read: dict[Path, _Known] = {}


def folder() -> Path:
    """Where this user's records are."""
    return home() / "records"


def append(record: Record) -> None:
    """Adds a record, durably and all or nothing; several processes may do so at once.

    If one of the same key is there by now, because another process measured the same, nothing is added.

    Raises: CheckpointError, if the file can't be written; ParameterError for a record that nobody can have measured.
    """
    line = to_line(record)
    path = _file(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if record.key not in _records_in(path):
                _set_torn_line_aside(path)
                _write(path, line)
    except OSError as error:
        raise _unusable(path, "written", error) from error


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
    records = list(records)
    defaults = _defaults(record.method for record in records)
    return [r for r in records if r.method in REFERENCES or r.selected_on is not None or _at_defaults(r, defaults)]


def preferred(records: Iterable[Record]) -> list[Record]:
    """Of each method what was selected on validation, and its other records only if nothing was selected."""
    records = list(records)
    selected = {record.method for record in records if record.selected_on is not None}
    return [r for r in records if r.selected_on is not None or r.method not in selected]


def uses_defaults(record: Record) -> bool:
    """Whether every hyper-parameter has its default; False if one has no default."""
    return _at_defaults(record, _defaults([record.method]))


def _at_defaults(record: Record, defaults: Mapping[str, Mapping[str, Any]]) -> bool:
    known = defaults.get(record.method)
    return known is not None and all(
        name in known and known[name] == value for name, value in record.hyperparameters.items()
    )


def _defaults(used: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> its parameters' defaults as JSON values, of the methods that fusionlib has."""
    found = {}
    for method in set(used).intersection(methods.names()):
        parameters = inspect.signature(methods.get(method).fuse).parameters
        found[method] = {name: json_value(parameter.default) for name, parameter in parameters.items()}
    return found


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
    known = {*REFERENCES, *methods.names()}
    kept = [r for r in records if r.method in known and r.provenance["source"] == source_hash(r.method)]
    for record in kept:
        newest[_suite_of(record)] = record.provenance["suite"]
    return [r for r in kept if r.provenance["suite"] == newest[_suite_of(r)]]


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
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        _read.pop(path, None)
        return {}
    except OSError as error:
        raise _unusable(path, "read", error) from error
    known = _read.get(path, _Known(0, 0, b"", about.st_mtime_ns, {}))
    if (about.st_size, about.st_mtime_ns) == (known.size, known.time):
        return known.records
    try:
        with open(path, "rb") as file:
            file.seek(known.size - len(known.end))
            if about.st_size <= known.size or file.read(len(known.end)) != known.end:  # edited or replaced meanwhile
                known = _Known(0, 0, b"", 0, {})
                file.seek(0)
            text = file.read()
            time = os.fstat(file.fileno()).st_mtime_ns  # of what was read, to which others may have added since `about`
    except OSError as error:
        raise _unusable(path, "read", error) from error
    complete = text[: text.rfind(b"\n") + 1]  # a torn last line is no record; see _set_torn_line_aside
    lines = complete.split(b"\n")[:-1]
    records = dict(known.records)
    refused: dict[int, NoRecord] = {}
    for number, line in enumerate(lines, start=known.lines + 1):
        try:
            record = from_line(line)
        except NoRecord as problem:
            refused[number] = problem
        else:
            records[record.key] = record
    if refused:
        _warn(path, refused)
    end = (known.end + complete)[-64:]
    size = known.size + len(complete)
    _read[path] = _Known(size, known.lines + len(lines), end, time, records)
    return records


def _warn(path: Path, refused: dict[int, NoRecord]) -> None:
    (first, problem), *others = refused.items()
    also = ""
    if others:
        shown = ", ".join(str(number) for number, _ in others[:_ENOUGH])
        also = f" The same or the like holds for {len(others)} more: {shown}{', ...' if others[_ENOUGH:] else ''}."
    logger.warning(
        "%s holds a line that is no record, and it is passed over: line %d %s.%s Delete that line, or the file: the "
        "records are measured again when they are needed.",
        path,
        first,
        problem,
        also,
    )


def _write(path: Path, line: bytes) -> None:
    """All of a line, or nothing."""
    with open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def _unusable(path: Path, what: str, error: OSError) -> CheckpointError:
    reason = error.strerror or str(error)
    return CheckpointError(
        f"the records in {path} can't be {what} ({reason}). Free some space or change the permissions, or let "
        "FUSIONLIB_HOME name a folder that can be written."
    )


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
