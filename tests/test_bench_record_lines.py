"""A stored line: what comes back, and that nothing that was changed or cannot be is taken for a measurement."""

import copy
import dataclasses
import json

import pytest
from bench_helpers import make_record
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlib.bench.provenance import digest
from fusionlib.bench.record_lines import NoRecord, from_line, to_line
from fusionlib.core import ParameterError

RECORD = make_record(
    counts={"b": (7, 9), "a": (0.30000000000000004, 3)},
    hyperparameters={"scale": [0.1, 1e-300, 10**30], "trim": None, "name": "\u03bb <b>"},
    metrics={"a": {"error": 0.1}},
    needs=("labels",),
)
FIELDS = json.loads(to_line(RECORD))


def line(fields, *, sealed):
    """A line with these fields; with a checksum of them, as who knows the rules could write it."""
    fields = {name: value for name, value in fields.items() if name != "checksum"}
    return json.dumps({**fields, "checksum": digest(fields)} if sealed else {**FIELDS, **fields}).encode()


def paths(value, before=()):
    """Where the parts of a JSON value are."""
    yield before
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from paths(part, (*before, name))


def test_what_was_written_comes_back():
    back = from_line(to_line(RECORD))
    assert back == RECORD and list(back.counts) == ["b", "a"]
    assert from_line(json.dumps(json.loads(to_line(RECORD)), indent=1).encode()) == RECORD, "how it is written is free"


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just([[[[]]]]),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([path for path in paths(FIELDS) if path and path != ("checksum",)]), VALUES)
def test_any_change_is_noticed(path, value):
    changed = copy.deepcopy(FIELDS)
    place = changed
    for name in path[:-1]:
        place = place[name]
    if json.dumps(place[path[-1]]) == json.dumps(value):
        return
    place[path[-1]] = value
    with pytest.raises(NoRecord, match="was changed after it was written"):
        from_line(json.dumps(changed).encode())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"provenance": {}}, "does not say in its provenance, 'suite'"),
        ({"provenance": None}, "does not say in its provenance"),
        ({"provenance": {"suite": "f0", "source": "s0", "created": 5}}, "'created', where it comes from"),
        ({"counts": {"a": [1, 0], "b": [1, 2]}}, r"counts \[1, 0\] for a"),
        ({"counts": {"a": [5, 4], "b": [1, 2]}}, r"counts \[5, 4\] for a"),
        ({"counts": {"a": [-1, 4], "b": [1, 2]}}, r"counts \[-1, 4\] for a"),
        ({"counts": {"a": [float("nan"), 4], "b": [1, 2]}}, r"counts \[nan, 4\] for a"),
        ({"counts": {"a": ["3", 4], "b": [1, 2]}}, r"counts \['3', 4\] for a"),
        ({"counts": {"a": [True, 4], "b": [1, 2]}}, r"counts \[True, 4\] for a"),
        ({"counts": {"a": [1, 4.0], "b": [1, 2]}}, r"counts \[1, 4.0\] for a"),
        ({"counts": {"a": [1, 4, 5], "b": [1, 2]}}, "counts .* for a"),
        ({"counts": {"a": 1, "b": [1, 2]}}, "counts 1 for a"),
        ({"counts": {"a": [1, 2]}}, "counts of other tasks than it names"),
        ({"counts": {}, "tasks": []}, "counts of other tasks than it names"),
        ({"counts": None}, "counts of other tasks than it names"),
        ({"stored_parameters": 0}, "stored_parameters 0"),
        ({"active_parameters": "10"}, "active_parameters '10'"),
        ({"fusion_seconds": -1}, "fusion_seconds -1"),
        ({"hyperparameters": [1]}, r"hyperparameters \[1\], which must be of type dict"),
        ({"seed": None}, "seed None"),
        ({"backbone": 3}, "backbone 3, which is no text"),
        ({"extra": 1}, r"fields missing or too many \(extra\)"),
    ],
)
def test_values_that_cannot_be_are_refused_with_a_checksum_too(changes, problem):
    with pytest.raises(NoRecord, match=problem):
        from_line(line({**FIELDS, **changes}, sealed=True))
    with pytest.raises(NoRecord):
        from_line(line(changes, sealed=False))


def test_lines_that_are_something_else():
    bare = json.dumps({name: value for name, value in FIELDS.items() if name != "checksum"})
    for text, problem in (
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a":' * 900 + "1" + "}" * 900, "has no checksum"),
        ("3", "is no JSON object"),
        (bare, "has no checksum: an older fusionlib"),
        (bare[:-9], "is not JSON"),
    ):
        with pytest.raises(NoRecord, match=problem):
            from_line(text.encode())
    with pytest.raises(NoRecord, match="is not JSON"):
        from_line(b"\xff\xfe{}")


def test_a_sum_of_scores_may_exceed_its_total_by_rounding():
    record = make_record(counts={"a": (3.0000001, 3)})
    assert from_line(to_line(record)) == record
    with pytest.raises(ParameterError, match="can't be stored"):
        to_line(dataclasses.replace(record, counts={"a": (3.001, 3)}))
