"""Words follow from numbers."""

import pytest

from fusionlib.bench.wording import beside, edge, listed, numbered, verb


@pytest.mark.parametrize(
    ("change", "within", "word"),
    [
        (0.3, 0.05, "raises"),
        (-0.3, 0.05, "lowers"),
        (0.04, 0.05, "leaves"),
        (-0.05, 0.05, "leaves"),
        (1.0, 1.2, "leaves"),
        (-1.3, 1.2, "lowers"),
    ],
)
def test_a_verb_has_the_side_of_its_number(change, within, word):
    assert verb(change, "raises", "lowers", "leaves", within) == word


def test_a_place_beside_another_number():
    assert [beside(p) for p in (1.36, -0.2, 0.04)] == ["1.4 points above", "0.2 points below", "level with"]


def test_lists():
    assert [listed("a"), listed("ab"), listed("abc"), listed([])] == ["a", "a and b", "a, b and c", "none"]
    assert numbered({"letters": -2.04, "mnist": 3.06}) == "mnist (+3.1) and letters (\N{MINUS SIGN}2.0)"
    assert numbered({}, none="no task") == "no task"


def test_edge_says_on_which_side_more_may_be_found():
    assert edge({0.01: 65.2, 0.03: 17.0}).startswith("It is the lowest of the 2 that were tried, so a lower one")
    assert edge({0.0: 1, 0.5: 2, 2.0: 3}).startswith("It is the highest of the 3 that were tried, so a higher one")
    assert edge({0.0: 1, 0.5: 3, 1.0: 2}) == "It lies inside the range that was tried."
    assert edge({0.0: 3, 0.5: 2}) == "It is the lowest there is."
    assert edge({0.1: 3, 0.5: 2, 0.9: 3}) == "Others that were tried do as well."
    assert edge({0.5: 1}) == "No other value was tried."
