"""Meters against values worked by hand; accuracy itself is tested where suites are evaluated."""

from dataclasses import replace

import pytest
import torch
from bench_helpers import toy_suite

import fusionlib as fl
from fusionlib.bench.evaluate import measure_task
from fusionlib.bench.meters import make_meter
from fusionlib.core import ParameterError, UnknownName
from fusionlib.zoo.suite_types import SuiteSpec


def measured(metric, *batches):
    meter = make_meter(metric)
    for output, labels in batches:
        meter.update(torch.tensor(output), torch.tensor(labels))
    return meter.result()


def one_hot(guesses):
    return torch.nn.functional.one_hot(torch.tensor(guesses), 2).float().tolist()


def test_matthews_of_a_table_of_four():
    # 3 true positives, 2 true negatives, 1 false positive, 2 false negatives: (3*2 - 1*2) / sqrt(4*5*3*4)
    guesses, truth = [1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0, 1, 1]
    counts, metrics = measured("matthews", (one_hot(guesses[:3]), truth[:3]), (one_hot(guesses[3:]), truth[3:]))
    assert counts == (5, 8)
    assert metrics["matthews"] == pytest.approx(4 / 240**0.5)


def test_matthews_of_a_constant_guess_is_zero():
    assert measured("matthews", (one_hot([1, 1, 1]), [1, 0, 1])) == ((2, 3), {"matthews": 0.0})


def test_an_answer_that_is_no_number_is_wrong():
    nan = float("nan")
    batch = [[2.0, 1.0], [nan, 1.0], [nan, nan], [-float("inf"), 0.0]], [0, 0, 0, 1]
    assert measured("accuracy", batch)[0] == measured("matthews", batch)[0] == (2, 4)


def test_spearman_with_a_tie():
    # ranks of the guesses 0, 1.5, 1.5, 3 and of the truth 0, 2, 1, 3: covariance 4.5, squares 4.5 and 5
    (score, total), metrics = measured("spearman", ([[0.1], [0.4]], [1.0, 3.0]), ([[0.4], [0.9]], [2.0, 5.0]))
    assert total == 4 and metrics["spearman"] == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert score == pytest.approx(4 * metrics["spearman"])


def test_a_negative_correlation_scores_nothing():
    (score, _), metrics = measured("spearman", ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]))
    assert score == 0 and metrics["spearman"] == pytest.approx(-1)


def test_an_unknown_measurement_is_named():
    with pytest.raises(UnknownName, match=r"'matthew'\. Did you mean 'matthews'"):
        make_meter("matthew")


def test_records_and_tables_hold_further_measurements(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    plain = toy_suite()
    with pytest.raises(ParameterError, match="counts alone"):
        fl.tables.by_metric(fl.references(plain))
    first, second = plain.tasks
    suite = toy_suite(tasks=(replace(first, metric="matthews"), second), fingerprint="f1")
    found = fl.references(suite)
    assert found[0].metrics == {"a": measure_task(suite.model(), suite, "a")[1]}
    assert fl.tables.by_metric(found).columns == ["Method", "a: matthews"]
    assert fl.references(suite)[0].metrics == found[0].metrics


def test_the_table_of_measurements_is_the_same_for_records_that_were_read(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    tasks = [replace(task, metric="matthews") for task in toy_suite().tasks]
    suite = toy_suite(tasks=tuple(reversed(tasks)), spec=SuiteSpec("toy", ("b", "a"), None, "full", 0))
    fresh, read = fl.references(suite), fl.references(suite)
    assert fl.tables.by_metric(fresh).columns == ["Method", "b: matthews", "a: matthews"]
    monkeypatch.setattr("fusionlib.bench.records._read", {})
    again = fl.records.read(backbone="toy")
    assert (
        fl.tables.by_metric(again).columns
        == fl.tables.by_metric(read).columns
        == ["Method", "b: matthews", "a: matthews"]
    )
