"""Task vectors, ties and the checks, on numbers small enough to see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlib.core import KeyMismatch
from fusionlib.ops import statedict
from fusionlib.ops.statedict import TaskVector, apply, check_compatible, task_vector
from fusionlib.testing import assert_same_weights, tiny_models


def test_arithmetic_reads_as_in_the_papers():
    base = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    a = {"w": torch.tensor([2.0, 2.0]), "n": torch.tensor(4)}
    b = {"w": torch.tensor([1.0, 5.0]), "n": torch.tensor(5)}
    moved = apply(base, 0.5 * (task_vector(a, base) + task_vector(b, base)))
    assert torch.equal(moved["w"], torch.tensor([1.5, 3.5]))
    assert moved["n"] == 3
    back = apply(base, -task_vector(a, base))
    assert torch.equal(back["w"], torch.tensor([0.0, 2.0]))


def test_lengths_and_angles():
    x, y = TaskVector({"w": torch.tensor([3.0, 4.0])}), TaskVector({"w": torch.tensor([4.0, -3.0])})
    assert x.norm() == 5.0 and x.dot(y) == 0.0 and x.cosine(y) == 0.0
    assert x.cosine(2 * x) == pytest.approx(1.0) and x.cosine(-x) == pytest.approx(-1.0)
    assert (x - x).norm() == 0.0 and (x - x).cosine(x) == 0.0


def test_tied_tensors_count_once():
    shared = torch.ones(2, 3)
    state = {"a": shared, "b": shared, "c": shared.clone(), "transposed": shared.T, "count": torch.tensor(1)}
    assert statedict.tied_names(state) == {"b": "a"}
    assert statedict.num_parameters(state) == 6 * 3


def test_weights_tied_before_but_not_after_are_refused():
    shared = torch.ones(2)
    base = {"a": shared, "b": shared}
    same = {"a": torch.zeros(2), "b": torch.zeros(2)}
    check_compatible(base, [same])
    with pytest.raises(KeyMismatch, match="'math' has different values under 'a' and 'b'"):
        check_compatible(base, [{"a": torch.zeros(2), "b": torch.ones(2)}], names=["math"])


def test_vectors_of_another_model_are_refused():
    base, (one, *_) = tiny_models()
    vector = task_vector(one, base)
    with pytest.raises(KeyMismatch, match="does not fit"):
        apply({"other": torch.zeros(2)}, vector)
    with pytest.raises(KeyMismatch, match="cannot be added"):
        _ = vector + TaskVector({})


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_linear(x, y):
    base, (one, two, _) = tiny_models()
    a, b = task_vector(one, base), task_vector(two, base)
    left = apply(base, x * a + y * b)
    right = apply(apply(base, y * b), x * a)
    assert_same_weights(left, right, rtol=1e-4, atol=1e-5)


def test_half_precision_is_calculated_in_float32():
    base, (one, *_) = tiny_models(dtype=torch.bfloat16)
    assert {value.dtype for value in task_vector(one, base).delta.values()} == {torch.float32}
    assert apply(base, task_vector(one, base))["0.weight"].dtype == torch.bfloat16
