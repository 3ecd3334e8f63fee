"""Which records are compared, and what of a record goes to its file."""

import pytest
from bench_helpers import make_record, stored

import fusionlib as fl
from fusionlib.bench import records
from fusionlib.core import ParameterError


def test_comparable_leaves_trials_on_test_data_out():
    made = {
        "reference": stored(method="pretrained"),
        "default": stored(),
        "tuned": stored(hyperparameters={"scale": 0.9}, selected_on="val"),
        "trial": stored(hyperparameters={"scale": 0.9}),
        "no default": stored(method="weighted_average", hyperparameters={"weights": [1, 1], "normalize": True}),
        "unknown": make_record("theirs"),
    }
    shown = records.comparable(made.values())
    assert [name for name, record in made.items() if record in shown] == ["reference", "default", "tuned"]


def test_json_values():
    import numpy as np
    import torch

    given = {"a": (1, 2.5), "b": np.float64(0.5), "c": torch.tensor([1.0, 2.0]), "d": None, "e": "sum"}
    assert records.json_value(given) == {"a": [1, 2.5], "b": 0.5, "c": [1.0, 2.0], "d": None, "e": "sum"}


def test_a_value_that_is_no_json_is_refused():
    with pytest.raises(ParameterError, match=r"{0\.3} can't be kept in a record: a hyper-parameter is a number"):
        records.json_value({0.3})


def test_preferred_keeps_what_validation_chose():
    made = [
        make_record(),
        make_record(hyperparameters={"scale": 0.5}, selected_on="val"),
        make_record("simple_average"),
    ]
    kept = fl.records.preferred(made)
    assert [(r.method, r.selected_on) for r in kept] == [("task_arithmetic", "val"), ("simple_average", None)]
