"""One record of each method, and none that was chosen on test data."""

import pytest
from bench_helpers import make_record

from fusionlib.bench import across, records
from fusionlib.bench.provenance import source_hash

SUITE = {"backbone": "toy", "tasks": ["a", "b"], "tuning": "full", "limit": None}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Puts records into a store of their own, each newer than the one before and made by today's code."""
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    made = []

    def store(method="task_arithmetic", **changes):
        source = {"source": source_hash(method), "created": f"2026-01-01T00:00:{len(made):02}+00:00"}
        made.append(make_record(method, provenance={"suite": "f0", **source}, **changes))
        records.append(made[-1])
        return made[-1]

    return store


def test_what_ran_once_with_given_values_may_stand_beside_defaults(stored):
    default = stored()
    once = stored("layer_wise_adamerging", hyperparameters={"lr": 0.01, "steps": 20})
    trials = [stored("fisher_merging", hyperparameters={"num_examples": n}) for n in (2, 4)]
    trial = stored(hyperparameters={"scale": 0.9})
    assert across.fair([default, once, *trials, trial]) == [default, once]
    assert across.fair([]) == []


def test_of_each_method_what_validation_chose(stored):
    reference = stored("finetuned")
    stored()
    chosen = stored(hyperparameters={"scale": 0.4}, selected_on="val")
    average = stored("simple_average", hyperparameters={})
    found = across.one_each(**SUITE)
    assert found == {"finetuned": reference, "simple_average": average, "task_arithmetic": chosen}


def test_merges_whose_statistics_were_measured_again_displace_the_others(stored):
    ensemble = stored("simple_ensemble", hyperparameters={"average": "logits"})
    stored("simple_average", hyperparameters={})
    again = stored("simple_average", hyperparameters={"batch_norm": "reestimate"})
    stored("task_arithmetic", hyperparameters={"scale": 0.3})
    assert across.one_each(**SUITE) == {"simple_ensemble": ensemble, "simple_average": again}
