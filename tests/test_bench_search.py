"""grid, sweep and tune on a suite whose answers are known: task arithmetic's threshold is 4 * scale."""

import logging

import numpy as np
import pytest
from bench_helpers import toy_suite

import fusionlib as fl
from fusionlib.bench import search
from fusionlib.core import NegativeVariance, ParameterError
from fusionlib.methods import task_arithmetic


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))


def test_grid():
    assert fl.grid(0, 1, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert fl.grid(0.1, 0.4, 4) == [0.1, 0.2, 0.3, 0.4], "without the dust of floating point"
    assert fl.grid(1, -1, 3) == [1, 0, -1]
    with pytest.raises(ParameterError, match="num = 1 points make no grid; use at least 2"):
        fl.grid(0, 1, 1)


def test_sweep_goes_through_all_combinations_the_last_one_fastest():
    over = {"scale": [1.0, 0.5], "density": [0.5, 1.0, 0.2]}
    found = fl.sweep("ties_merging", toy_suite(), over, combine="sum")
    assert [(r.hyperparameters["scale"], r.hyperparameters["density"]) for r in found] == [
        (1.0, 0.5),
        (1.0, 1.0),
        (1.0, 0.2),
        (0.5, 0.5),
        (0.5, 1.0),
        (0.5, 0.2),
    ]
    assert {r.hyperparameters["combine"] for r in found} == {"sum"}
    assert {r.split for r in found} == {"val"} and {r.selected_on for r in found} == {None}


def test_sweep_by_hand():
    found = fl.sweep("task_arithmetic", toy_suite(), {"scale": [0.1, 0.2, 0.4, 0.7]})  # thresholds 0.4, 0.8, 1.6, 2.8
    assert [r.counts["a"] for r in found] == [(1, 2), (2, 2), (1, 2), (1, 2)]
    assert [r.counts["b"] for r in found] == [(0, 2), (0, 2), (1, 2), (2, 2)]
    assert [r.limit for r in fl.sweep("task_arithmetic", toy_suite(), {"scale": [0.1]}, limit=1)] == [1]


def test_what_takes_a_variance_below_zero_is_left_out(caplog, monkeypatch):
    suite = toy_suite()
    measured = search.measured

    def with_batch_norm(method, suite, split, limit, selected_on, given):
        if given["scale"] > 0.5:
            raise NegativeVariance("1 of 2 variances below 0")
        return measured(method, suite, split, limit, selected_on, given)

    monkeypatch.setattr(search, "measured", with_batch_norm)
    with caplog.at_level(logging.INFO, "fusionlib"):
        found = fl.sweep("task_arithmetic", suite, {"scale": [0.1, 0.7, 0.4]})
    assert [record.hyperparameters["scale"] for record in found] == [0.1, 0.4]
    assert "task_arithmetic with scale=0.7 is left out: 1 of 2 variances below 0" in caplog.messages
    with pytest.raises(NegativeVariance, match="1 of 2 variances"):
        fl.sweep("task_arithmetic", suite, {"scale": [0.7, 1.0]})


def test_sweep_says_what_it_read(caplog):
    suite = toy_suite()
    fl.sweep("task_arithmetic", suite, {"scale": [0.1, 0.2]})
    assert not caplog.records
    with caplog.at_level(logging.INFO, "fusionlib"):
        fl.sweep("task_arithmetic", suite, {"scale": np.array([0.2, 0.1, 0.4])})
    assert caplog.messages == ["task_arithmetic: 2 records read, 1 measured"]


@pytest.mark.parametrize(
    ("over", "fixed", "message"),
    [
        ({"scale": [0.1]}, {"scale": 0.2}, "scale is given both in `over` and as a fixed value"),
        ({}, {}, "there is nothing to try for task_arithmetic"),
        ({"scale": []}, {}, "there is nothing to try for task_arithmetic"),
        ({"scael": [0.1]}, {}, r"no hyper-parameter 'scael'. Did you mean 'scale'\?"),
    ],
)
def test_sweep_refuses(over, fixed, message):
    with pytest.raises(ParameterError, match=message):
        fl.sweep("task_arithmetic", toy_suite(), over, **fixed)
    assert fl.records.read(split="val") == []


def test_tune_looks_at_validation_alone_and_takes_the_first_of_equals():
    suite = toy_suite(poisoned="test")
    with pytest.raises(AssertionError, match="the test split of a was read"):
        fl.run("task_arithmetic", suite)
    # of the card's grid 0.7 and 1.0 (thresholds 2.8 and 4) are best: 1/2 of a and all of b
    assert fl.tune("task_arithmetic", suite) == {"scale": 0.7}
    assert fl.tune("task_arithmetic", suite, over={"scale": [0.5, 1.0, 0.7]}) == {"scale": 1.0}
    assert {record.split for record in fl.records.read(split="val")} == {"val"}
    assert fl.records.read() == []


def test_tune_can_be_given_back_to_run():
    suite = toy_suite()
    record = fl.run("task_arithmetic", suite, selected_on="val", **fl.tune("task_arithmetic", suite))
    assert record.hyperparameters == {"scale": 0.7} and record.selected_on == "val"
    assert record.counts == {"a": (2, 4), "b": (5, 5)}


def test_tune_keeps_what_is_fixed_out_of_the_grid():
    best = fl.tune("ties_merging", toy_suite(), scale=1.0, combine="sum")
    assert best == {"scale": 1.0, "combine": "sum", "density": 0.2}
    with pytest.raises(ParameterError, match="scale is given both"):
        fl.tune("ties_merging", toy_suite(), over={"scale": [1.0]}, scale=1.0)


def test_tune_with_a_limit_sees_only_the_first_examples():
    # the first example of a asks for a threshold above 0.5, that of b above 1.5
    assert fl.tune("task_arithmetic", toy_suite(), limit=1) == {"scale": 0.4}


@pytest.mark.parametrize(("method", "fixed"), [("simple_average", {}), ("task_arithmetic", {"scale": 0.3})])
def test_nothing_to_tune(method, fixed):
    with pytest.raises(ParameterError, match=f"{method} has no hyper-parameters to tune"):
        fl.tune(method, toy_suite(), **fixed)
    with pytest.raises(ParameterError, match="no hyper-parameters to tune"):
        fl.tune(task_arithmetic, toy_suite(), over={})
