"""Counting: on models whose answers are known, and against a loop over the pictures one by one."""

import pytest
import torch
from bench_helpers import at, toy_suite

import fusionlib as fl
from fusionlib.bench.evaluate import evaluate, evaluate_task
from fusionlib.bench.measure import Measured
from fusionlib.core import ParameterError, UnknownName


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))


def test_counts_of_known_answers():
    suite = toy_suite()
    assert evaluate(suite.model(), suite) == {"a": (3, 4), "b": (2, 5)}
    assert evaluate(suite.model(at(2.0)), suite) == {"a": (3, 4), "b": (4, 5)}
    assert evaluate(suite.model(at(2.0)), suite, "val") == {"a": (1, 2), "b": (1, 2)}
    assert evaluate_task(suite.model(at(1.0)), suite, "a") == (4, 4)


def test_limit_takes_the_first_examples():
    suite = toy_suite()
    assert evaluate(suite.model(), suite, limit=3) == {"a": (2, 3), "b": (1, 3)}
    assert evaluate(suite.model(), suite, limit=99) == evaluate(suite.model(), suite)


def test_several_batches_add_up():
    numbers = [0.5] * 300 + [1.5] * 300
    suite = toy_suite(data={"test": {"a": (numbers, [1] * 600), "b": ([0.5], [0])}})
    assert evaluate(suite.model(at(1.0)), suite) == {"a": (300, 600), "b": (0, 1)}


def test_tasks_come_in_the_order_of_the_suite():
    suite = toy_suite()
    turned = toy_suite(spec=type(suite.spec)("toy", ("b", "a"), None, "full", 0))
    assert list(evaluate(suite.model(), suite)) == ["a", "b"]
    assert list(evaluate(turned.model(), turned)) == ["b", "a"]


def test_chosen_tasks_in_the_order_asked_for():
    suite = toy_suite()
    assert list(evaluate(suite.model(), suite, tasks=["b", "a"]).items()) == [("b", (2, 5)), ("a", (3, 4))]
    assert evaluate(suite.model(), suite, tasks=["b"], limit=2) == {"b": (1, 2)}
    with pytest.raises(UnknownName, match="the suite has no task 'c'"):
        evaluate(suite.model(), suite, tasks=["c"])


def test_a_model_is_evaluated_in_evaluation_mode_and_without_gradients():
    suite = toy_suite()
    model = suite.model().train()
    seen = []
    model.register_forward_hook(lambda module, given, output: seen.append((module.training, output.requires_grad)))
    evaluate(model, suite)
    assert seen == [(False, False)] * 2


def test_an_ensemble_answers_by_the_mean_of_its_members():
    suite = toy_suite()
    assert evaluate(fl.fuse("simple_ensemble", suite), suite) == {"a": (3, 4), "b": (4, 5)}


def test_embedded_pictures_are_counted_as_one_by_one():
    suite = fl.load_suite("tiny-clip", ["emoji"], tuning="none", device="cpu")
    model, head = suite.model(), suite.heads["emoji"]
    task, correct = suite.task("emoji"), 0
    for row in list(task.dataset("test"))[:10]:
        inputs = suite.backbone.preprocess.normalise(suite.backbone.preprocess.pixels(row["image"])[None])
        with torch.no_grad():
            correct += int(head(model(pixel_values=inputs).image_embeds).argmax()) == row["label"]
    assert 0 < correct < 10
    assert evaluate(model, suite, limit=10) == {"emoji": (correct, 10)}
    with pytest.raises(ParameterError, match="limit=0 must be an integer, 1 or greater"):
        evaluate(model, suite, limit=0)


def test_the_cost_of_a_call():
    before = torch.ones(1)
    measured = Measured(lambda: torch.ones(1 << 24) + before, torch.device("cpu"))
    assert measured.value.shape == (1 << 24,) and measured.seconds > 0
    # the ones and their sum: two times 64 MiB, where the operating system tells
    assert measured.peak_memory is None or measured.peak_memory > 100 * 2**20


def test_memory_that_was_freed_before_counts_again():
    """Many small tensors, which the allocator would keep: taken anew, they are 16 MiB again."""

    def take():
        return [torch.ones(1 << 10) for _ in range(1 << 12)]

    take()
    measured = Measured(take, torch.device("cpu"))
    assert measured.peak_memory is None or measured.peak_memory > 12 * 2**20
