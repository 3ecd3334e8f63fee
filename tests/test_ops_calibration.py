"""Calibration data: seeded order, nothing beyond what was asked for, and no look at what the card does not name."""

import dataclasses
import itertools

import pytest
import torch

import fusionlib as fl
from fusionlib.bench.calibration import calibration
from fusionlib.core import MethodCard, ParameterError
from fusionlib.testing import tiny_data, tiny_model


def inputs(batches):
    return torch.cat([batch["input"] for batch in batches])


def test_draws_without_replacement_and_repeats():
    data = tiny_data(2)
    drawn = inputs(data.draw("task 0", "train", 30, 8))
    assert drawn.shape == (30, 3) and len({tuple(row.tolist()) for row in drawn}) == 30
    assert torch.equal(drawn, inputs(data.draw("task 0", "train", 30, 30))), "the size of batches changes no order"
    assert inputs(data.draw("task 0", "train", 1000, 16)).shape == (40, 3), "no more than there are"


def test_order_depends_on_seed_task_and_split_alone():
    data = tiny_data(2)
    first = inputs(data.draw("task 1", "train", 10, 10))
    assert torch.equal(first, inputs(tiny_data(2, order=(1, 0)).draw("task 1", "train", 10, 10)))
    assert not torch.equal(first, inputs(data.draw("task 1", "val", 10, 10)))
    assert not torch.equal(first, inputs(tiny_data(2, seed=1).draw("task 1", "train", 10, 10)))
    torch.manual_seed(5)
    assert torch.equal(first, inputs(data.draw("task 1", "train", 10, 10)))


def test_streams_end_nowhere_and_pass_over_everything():
    data = tiny_data(1)
    batches = list(itertools.islice(data.stream("task 0", "val", 16), 7))
    assert all(len(batch["input"]) == 16 for batch in batches)
    whole = inputs(data.draw("task 0", "val", 40, 40))
    one_pass = inputs(itertools.islice(data.stream("task 0", "val", 40), 1))
    assert torch.equal(one_pass.sort(dim=0).values, whole.sort(dim=0).values)
    assert len(next(data.stream("task 0", "val", 1000))["input"]) == 40


def test_only_what_the_card_names():
    data = dataclasses.replace(tiny_data(1), allowed=frozenset({"inputs"}))
    with pytest.raises(ParameterError, match="does not say that it uses labels"):
        data.draw_labelled("task 0", "train", 4, 4)
    with pytest.raises(ParameterError, match="does not say that it uses test inputs"):
        data.draw("task 0", "test", 4, 4)
    with pytest.raises(ParameterError, match="does not say that it uses test inputs"):
        next(data.stream("task 0", "test", 4))
    ((batch, labels),) = tiny_data(1).draw_labelled("task 0", "test", 4, 4)
    assert labels.shape == (4,) and batch["input"].shape == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("task 9", "train", 4, 4), "no data of a task 'task 9'"),
        (("task 0", "dev", 4, 4), "no split 'dev'"),
        (("task 0", "train", 0, 4), "num_examples = 0"),
        (("task 0", "train", 4, 2.5), "batch_size = 2.5"),
    ],
)
def test_bad_questions(arguments, message):
    with pytest.raises(ParameterError, match=message):
        tiny_data(1).draw(*arguments)


def test_logits_are_those_of_the_tasks_head():
    data, model = tiny_data(2), tiny_model()
    batch = next(data.draw("task 1", "train", 5, 5))
    with torch.no_grad():
        expected = data.heads["task 1"](model(**batch), batch)
        torch.testing.assert_close(data.logits("task 1", model, batch), expected)
    assert expected.shape == (5, 3)


def test_needs_depend_on_hyperparameters():
    card = MethodCard(
        "x", "X", "Y", "merge", needs=frozenset({"inputs"}), needs_when={("split", "test"): "test-inputs"}
    )
    assert card.needs_with({"split": "val"}) == {"inputs"}
    assert card.needs_with({"split": "test"}) == {"inputs", "test-inputs"}


def test_from_a_suite(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    suite = fl.load_suite("tiny-clip", ["optdigits"], tuning="none", seed=3)
    data = calibration(suite, frozenset({"inputs"}))
    assert data.tasks == ("optdigits",) and data.seed == 3
    assert data.sizes == {("optdigits", "train"): 1000, ("optdigits", "val"): 200}, "test is not even counted"
    assert ("optdigits", "test") in calibration(suite, frozenset({"test-inputs"})).sizes
    batch, labels = data.read("optdigits", "val", [3, 1])
    everything, answers = next(suite.batches("optdigits", "val"))
    assert torch.equal(batch["pixel_values"], everything["pixel_values"][[3, 1]])
    assert torch.equal(labels, answers[[3, 1]])
