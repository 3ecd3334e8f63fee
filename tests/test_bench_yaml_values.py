"""YAML as people write it: which scalars are numbers, and what is refused with its line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlib.bench.yaml_values import load, load_file
from fusionlib.core import ParameterError

SCALARS = {
    "1e-3": 0.001,
    "1E+3": 1000.0,
    "-2e1": -20.0,
    ".5": 0.5,
    "5.": 5.0,
    "1.0e-3": 0.001,
    "12e03": 12000.0,
    "7": 7,
    "-0": 0,
    "+3": 3,
    "1_000": 1000,
    "0x1F": 31,
    "0o17": 15,
    "-.inf": -math.inf,
    "yes": True,
    "off": False,
    "~": None,
    "null": None,
    "010": "010",
    "1:30": "1:30",
    "2024-01-01": "2024-01-01",
    "2024-99-99": "2024-99-99",
    "1__0": "1__0",
    "e3": "e3",
    "1.5.2": "1.5.2",
    ".": ".",
    "'1e3'": "1e3",
    '"7"': "7",
    "!!str 7": "7",
    "30%": "30%",
}


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_a_number_where_yaml_1_2_and_python_agree_that_it_is(text):
    value = load(f"a: {text}", "f.yaml")[0]["a"]
    assert value == SCALARS[text] and type(value) is type(SCALARS[text])


@settings(deadline=None)
@given(st.floats(allow_nan=False) | st.integers())
def test_every_number_as_python_writes_it_comes_back(number):
    text = str(number).replace("inf", ".inf")
    value = load(f"- {text}", "f.yaml")[0][0]
    assert value == number and type(value) is type(number)


def test_the_lines_are_those_of_the_outermost_keys():
    value, lines = load("# c\na: {b: 1}\n\nc: [1]\n", "f.yaml")
    assert value == {"a": {"b": 1}, "c": [1]} and lines == {"a": 2, "c": 4}
    assert load("", "f.yaml") == (None, {}) and load("[1, 2]", "f.yaml") == ([1, 2], {})


def test_what_an_alias_names_may_be_merged_into_a_mapping():
    text = "tasks:\n  one: &one {data: x, head: h}\n  two: {<<: *one, data: y}\n"
    assert load(text, "f.yaml")[0]["tasks"]["two"] == {"data": "y", "head": "h"}


REFUSED = {
    "a: 1\nb: 2\na: 3": "f.yaml: 'a' is set on line 1 and on line 3",
    "a:\n  b: 1\n  b: 2": "f.yaml: 'b' is set on line 2 and on line 3",
    "{a: 1, a: 2}": "'a' is set on line 1, twice",
    "a: [{b: 1, b: 1}]": "'b' is set on line 1, twice",
    "1: x": "line 1: the key '1' is not a name",
    "on: x": "line 1: the key 'on' is not a name",
    "? [a]\n: x": "line 1: the key of a list or mapping",
    "a: !!python/object:os.system x": "the tag !!python/object:os.system has no meaning here",
    "a: !!set {x}": "the tag !!set",
    "a: !!binary zz": "the tag !!binary",
    "a: !!bool maybe": "is not YAML",
    "a: !!int x": "is not YAML",
    "a: &x [*x]": "nested too deeply",
    "[" * 5000: "nested too deeply",
    "a: " + "{b: " * 30 + "1" + "}" * 30: "nested too deeply",
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(
        f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdef", "bcdefg", strict=True)
    ): "too deeply",
    "a: " + "9" * 5000: "is not YAML: Exceeds the limit",
    "a: \0": "is not YAML: unacceptable character",
    "a: \ud800": "is not YAML: unacceptable character",
    "a: b: c": "line 1 is not YAML: mapping values are not allowed here",
    "a: 1\n---\nb: 2": "line 2 is not YAML",
    "a: *x": "undefined alias",
    "a: 1\n\t- x": "line 2 is not YAML",
    "<<: 3": "line 1 is not YAML",
    "a: 'b": "line 1 is not YAML",
}


@pytest.mark.parametrize("text", REFUSED, ids=[text[:20].encode("unicode_escape").decode() for text in REFUSED])
def test_what_is_refused_and_where_it_stands(text):
    with pytest.raises(ParameterError) as error:
        load(text, "f.yaml")
    assert REFUSED[text] in str(error.value) and str(error.value).startswith("f.yaml")


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="a:-[]{}&*!?|>'\"#%@`,\n 1.e<~", max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        value, lines = load(text, "f.yaml")
    except ParameterError:
        return
    assert not lines or lines.keys() <= value.keys() | {"<<"}


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1e-3\r\nb: 2\r\n")
    assert load_file(tmp_path / "bom.yaml") == ({"a": 0.001, "b": 2}, {"a": 1, "b": 2})
    (tmp_path / "utf16.yaml").write_bytes("a: 1".encode("utf-16"))
    for name, reason in (("utf16.yaml", "UTF-8"), ("absent", "No such file"), ("", "directory"), ("a\0b", "null byte")):
        with pytest.raises(ParameterError, match=reason):
            load_file(tmp_path / name)
    with pytest.raises(ParameterError, match="too long"):
        load_file(tmp_path / ("n" * 300))
