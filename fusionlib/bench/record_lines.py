"""A record as a line of text: JSON with a checksum, so that what was changed afterwards is never taken for measured.

The checksum covers every other field. It guards against slips and edits by hand, not against somebody who computes it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from fusionlib.bench.provenance import digest
from fusionlib.core import ParameterError, Record

_CHECKSUM = "checksum"
_FIELDS = {field.name for field in dataclasses.fields(Record)}
_TEXTS = ("key", "method", "kind", "backbone", "tuning", "split")
_SLACK = 1e-6  # of the total: sums of scores in [0, 1] may exceed it by rounding


class NoRecord(ValueError):
    """A line that holds no record; the message says why and ends the sentence "a line that ..."."""


def to_line(record: Record) -> bytes:
    """The line of a record, with its checksum.

    Raises: ParameterError for a record that nobody can have measured.
    """
    fields = json.loads(json.dumps(dataclasses.asdict(record)))
    try:
        _check(fields)
    except NoRecord as problem:
        raise ParameterError(f"the record {record.key!r} of {record.method!r} can't be stored: it {problem}.") from None
    return json.dumps({**fields, _CHECKSUM: digest(fields)}, sort_keys=True).encode() + b"\n"


def from_line(line: bytes) -> Record:
    """The record of a line.

    Raises: NoRecord.
    """
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise NoRecord("is no JSON object")
        if _CHECKSUM not in fields:
            raise NoRecord("has no checksum: an older fusionlib wrote it, or somebody else")
        if fields.pop(_CHECKSUM) != digest(fields):
            raise NoRecord("was changed after it was written: its checksum is of other values")
        _check(fields)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise NoRecord("is not JSON") from None
    # keys are sorted in the file; the tasks' own order is that of the tables' columns
    fields["counts"] = {task: tuple(fields["counts"][task]) for task in fields["tasks"]}
    return Record(**{**fields, "tasks": tuple(fields["tasks"]), "needs": tuple(fields["needs"])})


def _check(fields: Mapping[str, Any]) -> None:
    """Raise NoRecord unless every reader can rely on these values."""
    if fields.keys() != _FIELDS:
        odd = ", ".join(sorted(fields.keys() ^ _FIELDS))
        raise NoRecord(f"has fields missing or too many ({odd})")
    for name in _TEXTS:
        if not isinstance(fields[name], str):
            raise NoRecord(f"has {name} {fields[name]!r}, which is no text")
    tasks, counts, about = fields["tasks"], fields["counts"], fields["provenance"]
    if not isinstance(tasks, list) or not tasks or not isinstance(counts, dict) or sorted(counts) != sorted(tasks):
        raise NoRecord("has counts of other tasks than it names")
    for task, pair in counts.items():
        if not _is_count(pair):
            raise NoRecord(f"has the counts {pair!r} for {task}, of which the first must lie between 0 and the second")
    for name in ("stored_parameters", "active_parameters"):
        if type(fields[name]) is not int or fields[name] < 1:
            raise NoRecord(f"has {name} {fields[name]!r}, which must be a whole number of at least 1")
    for name in ("fusion_seconds", "evaluation_seconds"):
        if not _is_number(fields[name]) or fields[name] < 0:
            raise NoRecord(f"has {name} {fields[name]!r}, which must be a number of at least 0")
    for name, kind in (("hyperparameters", dict), ("metrics", dict), ("needs", list), ("seed", int)):
        if not isinstance(fields[name], kind):
            raise NoRecord(f"has {name} {fields[name]!r}, which must be of type {kind.__name__}")
    for name in ("suite", "source", "created"):
        if not isinstance(about, dict) or not isinstance(about.get(name), str):
            raise NoRecord(f"does not say in its provenance, {name!r}, where it comes from")


def _is_count(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        return False
    correct, total = pair
    return type(total) is int and total > 0 and 0 <= correct <= total * (1 + _SLACK)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
