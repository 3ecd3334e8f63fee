"""A search that ends on the edge of what it tried says so, and goes on where a trial is cheap."""

import logging

import matplotlib.pyplot as plt
import pytest
from bench_helpers import make_record, toy_suite
from hypothesis import given, settings
from hypothesis import strategies as st

import fusionlib as fl
from fusionlib.bench import search
from fusionlib.bench.edges import choice_edges, edges
from fusionlib.bench.labels import information
from fusionlib.core import ParameterError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))


def swept(curve, name="scale", method="task_arithmetic", **changes):
    """Validation records with these numbers of right answers out of 100."""
    return [
        make_record(method, {"a": (right, 100)}, hyperparameters={name: value}, split="val", **changes)
        for value, right in curve.items()
    ]


@pytest.mark.parametrize(
    ("curve", "found"),
    [
        ({0.1: 50, 0.2: 60, 0.3: 55}, []),
        ({0.1: 50, 0.2: 60, 0.3: 70}, [("highest", 0.3, 0.4)]),
        ({0.3: 70, 0.2: 60, 0.1: 50}, [("highest", 0.3, 0.4)]),
        ({0.1: 70, 0.2: 60, 0.4: 50}, [("lowest", 0.1, 0.05)]),
        ({-0.2: 70, 0.2: 60}, [("lowest", -0.2, -0.6)]),
        ({0.1: 50, 0.2: 70, 0.3: 70}, []),  # as good further inside
        ({0.1: 60, 0.2: 60}, []),  # nothing tells them apart
        ({0.0: 70, 0.2: 60, 0.4: 50}, []),  # nothing lies beyond nothing
        ({0.3: 70}, []),
        ({}, []),
    ],
)
def test_the_best_of_a_sweep_by_hand(curve, found):
    assert [(e.side, e.value, e.beyond) for e in edges(swept(curve))] == found


def test_a_seed_a_choice_and_a_list_have_no_edge():
    assert edges(swept({0: 50, 1: 60, 2: 70}, "seed", "model_recombination")) == []
    assert edges(swept({False: 50, True: 60}, "center", "max_model_predictor")) == []
    assert edges(swept({"logits": 50, "probabilities": 60}, "average", "simple_ensemble")) == []
    lists = [
        make_record(hyperparameters={"scale": [0.1, value]}, counts={"a": (right, 9)})
        for value, right in ((0.1, 5), (0.2, 6))
    ]
    assert edges(lists) == []


def test_with_two_numbers_each_is_judged_where_the_other_is_best():
    right = {(0.1, 1.0): 50, (0.1, 2.0): 55, (0.2, 1.0): 60, (0.2, 2.0): 70, (0.3, 1.0): 80, (0.3, 2.0): 65}
    tried = [
        make_record("ties_merging", {"a": (n, 100)}, hyperparameters={"density": d, "scale": s}, split="val")
        for (d, s), n in right.items()
    ]
    assert [str(edge) for edge in edges(tried)] == [
        "density 0.3 is the highest that was tried",
        "scale 1 is the lowest that was tried",
    ]


def test_a_choice_is_judged_by_all_trials_whatever_they_were_counted_on():
    trials = swept({0.1: 50, 0.2: 60, 0.3: 70}, limit=100)
    chosen = make_record(hyperparameters={"scale": 0.3}, selected_on="val")
    assert [edge.side for edge in choice_edges(chosen, trials)] == ["highest"]
    assert choice_edges(chosen, [*trials, *swept({0.4: 65})]) == [], "0.4 was looked at elsewhere"
    assert choice_edges(chosen, swept({0.1: 50, 0.2: 60})) == [], "nobody knows how it was chosen"
    assert choice_edges(chosen, swept({0.1: 50, 0.3: 60}, seed=1)) == []


def test_a_record_can_say_itself_what_was_tried():
    def note(value, *tried):
        chosen = make_record(hyperparameters={"scale": value}, selected_on="val")
        chosen.provenance["tried"] = {"scale": list(tried)}
        return [(edge.side, edge.beyond) for edge in choice_edges(chosen, [])]

    assert note(0.01, 0.01, 0.03) == [("lowest", 0.00333333)]
    assert note(0.03, 0.01, 0.03, 0.1) == [] and note(0.03, 0.03) == []
    record = fl.run("task_arithmetic", toy_suite(), selected_on="val", tried={"scale": (0.4, 0.8)}, scale=0.8)
    assert record.provenance["tried"] == {"scale": [0.4, 0.8]}
    assert "scale 0.8, the highest" in fl.tables.by_task([record]).note
    with pytest.raises(ParameterError, match="say on which split with `selected_on` too"):
        fl.run("task_arithmetic", toy_suite(), tried={"scale": (0.4, 0.8)}, scale=0.8)


@given(st.dictionaries(st.integers(1, 400), st.integers(0, 100), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_only_a_best_value_that_is_the_last_one_is_named(curve):
    curve = {value / 100: right for value, right in curve.items()}
    winners = [value for value, right in curve.items() if right == max(curve.values())]
    named = {edge.value for edge in edges(swept(curve))}
    assert named == ({*winners} & {min(curve), max(curve)} if len(winners) == 1 else set())


def test_tune_goes_on_until_the_best_is_inside(caplog):
    # thresholds are 4 * scale: 1, 2, 3 and 3 of the four validation answers are right at 0.4, 1.6, 2.8 and 4
    with caplog.at_level(logging.INFO, "fusionlib"):
        assert fl.tune("task_arithmetic", toy_suite(poisoned="test"), over={"scale": [0.1, 0.4]}) == {"scale": 0.7}
    assert [r.hyperparameters["scale"] for r in fl.records.read(split="val")] == [0.1, 0.4, 0.7, 1.0]
    assert caplog.messages == [
        "task_arithmetic: the best was the last value tried, so these were tried too: scale 0.7, scale 1"
    ]


def test_tune_goes_on_a_few_steps_only_and_says_where_it_stopped(caplog, monkeypatch):
    monkeypatch.setattr(search, "FURTHER", 1)
    with caplog.at_level(logging.INFO, "fusionlib"):
        assert fl.tune("task_arithmetic", toy_suite(), over={"scale": [0.1, 0.4]}) == {"scale": 0.7}
    assert caplog.messages[1:] == [
        "task_arithmetic: scale 0.7 is the highest that was tried; a better one may lie beyond"
    ]


def test_a_value_that_the_method_refuses_ends_the_search(monkeypatch):
    def refuses(*asked):
        if asked[-1]["scale"] > 0.5:
            raise ParameterError("too much")
        return real(*asked)

    real = search.measured
    monkeypatch.setattr(search, "measured", refuses)
    assert fl.tune("task_arithmetic", toy_suite(), over={"scale": [0.1, 0.4]}) == {"scale": 0.4}


def test_a_sweep_says_so_too(caplog):
    suite = toy_suite()
    with caplog.at_level(logging.INFO, "fusionlib"):
        fl.sweep("task_arithmetic", suite, {"scale": [0.1, 0.4, 0.7]})
        fl.sweep("task_arithmetic", suite, {"scale": [0.1, 0.7, 0.85]})
        fl.sweep("task_arithmetic", suite, {"scale": [0.1, 0.2, 0.7]}, split="test")
    said = [message for message in caplog.messages if "beyond" in message]
    assert said == ["task_arithmetic: scale 0.7 is the highest that was tried; a better one may lie beyond"]


def test_tables_say_so():
    suite = toy_suite()
    for scale in (0.1, 0.4, 0.7):
        fl.run("task_arithmetic", suite, split="val", scale=scale)
    chosen = fl.run("task_arithmetic", suite, selected_on="val", scale=0.7)
    records = [*fl.references(suite), chosen]
    said = "Of the choices on val these lie on the edge of what was tried: Task Arithmetic (scale 0.7, the highest)."
    assert fl.tables.by_task(records).note.endswith(said)
    assert fl.tables.leaderboard(records).note.endswith(said)
    fl.run("task_arithmetic", suite, split="val", scale=0.8)
    assert "edge" not in fl.tables.leaderboard(records).note


@pytest.mark.parametrize(
    ("curve", "split", "label"),
    [
        ({0.1: 50, 0.2: 60, 0.3: 70}, "val", "scale (the best is the highest tried)"),
        ({0.1: 80, 0.2: 60, 0.3: 70}, "val", "scale (the best is the lowest tried)"),
        ({0.1: 50, 0.2: 80, 0.3: 70}, "val", "scale"),
        ({0.1: 50, 0.2: 60, 0.3: 70}, "test", "scale"),
    ],
)
def test_figures_say_so(curve, split, label):
    records = [
        make_record(counts={"a": (right, 100)}, hyperparameters={"scale": value}, split=split)
        for value, right in curve.items()
    ]
    fig = fl.plots.sweep(records, "scale")
    assert fig.axes[0].get_xlabel() == label
    plt.close(fig)


def test_choosing_uses_labels():
    assert information(make_record()) == "weights alone"
    assert information(make_record(selected_on="val")) == "labels to choose"
    assert information(make_record(selected_on="val", needs=("inputs",))) == "unlabelled inputs, labels to choose"
    assert information(make_record("finetuned")) == "the task, to pick a model"
