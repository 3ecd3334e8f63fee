"""One oracle per method: numbers worked out by hand from the paper's equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusionlib.core import NonFiniteError, ParameterError
from fusionlib.methods import simple_average, simple_ensemble, task_arithmetic, ties_merging, weighted_average
from fusionlib.ops import streaming
from fusionlib.ops.modules import Ensemble, predict
from fusionlib.ops.variances import unchecked_variances
from fusionlib.testing import assert_same_weights, tiny_model, tiny_models

BASE = {"w": torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])}
ONE = {"w": torch.tensor([[3.0, 0.5, 1.0], [0.2, -4.0, 1.0]])}  # task vector  2.0 -0.5 0 | 0.2 -4 1
TWO = {"w": torch.tensor([[2.0, 2.0, 0.0], [0.1, 5.0, 3.0]])}  # task vector  1.0  1.0 -1 | 0.1  5 3


def w(*numbers):
    return {"w": torch.tensor(numbers).reshape(2, 3)}


def test_simple_average():
    assert_same_weights(simple_average.fuse(BASE, [ONE, TWO]), w(2.5, 1.25, 0.5, 0.15, 0.5, 2.0))


def test_weighted_average():
    fused = weighted_average.fuse(BASE, [ONE, TWO], weights=[3, 1])
    assert_same_weights(fused, w(2.75, 0.875, 0.75, 0.175, -1.75, 1.5))
    plain = weighted_average.fuse(BASE, [ONE, TWO], weights=[1, -1], normalize=False)
    assert_same_weights(plain, w(1.0, -1.5, 1.0, 0.1, -9.0, -2.0))


def test_task_arithmetic():
    assert_same_weights(task_arithmetic.fuse(BASE, [ONE, TWO], scale=0.5), w(2.5, 1.25, 0.5, 0.15, 0.5, 2.0))
    apart = task_arithmetic.fuse(BASE, [ONE, TWO], scale=[1.0, -1.0])
    assert_same_weights(apart, w(2.0, -0.5, 2.0, 0.1, -9.0, -2.0))


# Density 0.5 of d = 6: the threshold is the (6 - 3) = 3rd smallest magnitude, so four entries stay.
# ONE: magnitudes 0 .2 .5 1 2 4, threshold .5, kept  2 -.5 0 | 0 -4 1
# TWO: magnitudes .1 1 1 1 3 5, threshold 1, kept    1   1 -1 | 0  5 3   (all ties of 1 stay)
# Elected signs: + + - | . + +, where "." is empty; mean of those that agree: 1.5 1 -1 | 0 5 2
def test_ties_by_hand():
    fused = ties_merging.fuse(BASE, [ONE, TWO], density=0.5, scale=1.0)
    assert_same_weights(fused, w(2.5, 2.0, 0.0, 0.0, 5.0, 2.0))
    summed = ties_merging.fuse(BASE, [ONE, TWO], density=0.5, scale=0.5, combine="sum")
    assert_same_weights(summed, w(2.5, 1.5, 0.5, 0.0, 2.5, 2.0))
    largest = ties_merging.fuse(BASE, [ONE, TWO], density=0.5, scale=1.0, combine="max")
    assert_same_weights(largest, w(3.0, 2.0, 0.0, 0.0, 5.0, 3.0))


def test_ties_per_tensor_keeps_exactly_k():
    # k = floor(6 * 0.5) = 3. ONE keeps 2, -4, 1. TWO keeps 3, 5 and the first of its three entries of size 1.
    fused = ties_merging.fuse(BASE, [ONE, TWO], density=0.5, trim="tensor")
    assert_same_weights(fused, w(2.5, 1.0, 1.0, 0.0, 5.0, 2.0))


def test_ties_keeps_at_least_one():
    base, one = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, -3.0, 2.0])}
    for trim in ("global", "tensor"):
        fused = ties_merging.fuse(base, [one], density=0.01, trim=trim)
        assert torch.equal(fused["w"], torch.tensor([0.0, -3.0, 0.0])), trim


def test_ties_where_values_cancel():
    base = {"w": torch.zeros(4)}
    models = [{"w": torch.tensor([2.0, -1.0, -1.0, 0.0])}, {"w": torch.tensor([-2.0, -1.0, -1.0, 0.0])}]
    majority = ties_merging.fuse(base, models, density=1.0)
    assert torch.equal(majority["w"], torch.tensor([-2.0, -1.0, -1.0, 0.0]))
    positive = ties_merging.fuse(base, models, density=1.0, zero_sign="positive")
    assert torch.equal(positive["w"], torch.tensor([2.0, -1.0, -1.0, 0.0]))
    tied = [{"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([-2.0, -1.0])}]
    assert torch.equal(ties_merging.fuse({"w": torch.zeros(2)}, tied, density=1.0)["w"], torch.zeros(2))


def plain_ties(base, models, density, scale, combine, zero_sign):
    """The authors' order of steps on whole vectors: slow, and plain enough to be the oracle."""
    keys = [key for key, value in base.items() if value.is_floating_point()]
    flat = torch.cat([base[key].flatten() for key in keys])
    tau = torch.stack([torch.cat([model[key].flatten() for key in keys]) - flat for model in models])
    drop = tau.shape[1] - int(tau.shape[1] * density)
    if drop:
        tau = tau * (tau.abs() >= tau.abs().kthvalue(drop, dim=1, keepdim=True).values)
    sign = tau.sum(dim=0).sign()
    sign[sign == 0] = 1.0 if zero_sign == "positive" else sign.sum().sign()
    agree = torch.where(tau.sign() == sign, tau, 0.0)
    if combine == "max":
        merged = agree.abs().amax(dim=0) * sign
    else:
        merged = agree.sum(dim=0) / ((agree != 0).sum(dim=0).clamp(min=1) if combine == "mean" else 1)
    out, start = {key: value.clone() for key, value in base.items()}, 0
    for key in keys:
        n = base[key].numel()
        out[key] = base[key] + scale * merged[start : start + n].view_as(base[key])
        start += n
    return out


@settings(max_examples=80, deadline=None)
@given(
    density=st.sampled_from([0.05, 0.2, 0.5, 0.8, 1.0]),
    scale=st.floats(-2, 2),
    combine=st.sampled_from(["mean", "sum", "max"]),
    zero_sign=st.sampled_from(["majority", "positive"]),
    coarse=st.booleans(),
    block=st.sampled_from([3, 16, 1 << 18]),
    num_models=st.integers(1, 5),
)
def test_ties_equals_the_plain_version(density, scale, combine, zero_sign, coarse, block, num_models):
    base, models = tiny_models(num_models)
    if coarse:  # few distinct values, so that ties and cancellations abound
        base = {key: (value * 0).to(value.dtype) for key, value in base.items()}
        models = [{k: (v * 4).round() if v.is_floating_point() else v for k, v in m.items()} for m in models]
    expected = plain_ties(base, models, density, scale, combine, zero_sign)
    with pytest.MonkeyPatch.context() as patch, unchecked_variances():  # a scale of -2 takes variances below 0
        patch.setattr(streaming, "CPU_BLOCK", block)
        fused = ties_merging.fuse(base, models, density=density, scale=scale, combine=combine, zero_sign=zero_sign)
    assert_same_weights(fused, expected)


@pytest.mark.parametrize("block", [1, 3, 7, 64])
@pytest.mark.parametrize("method", [simple_average, task_arithmetic])
def test_block_size_is_without_effect(method, block, monkeypatch):
    whole = method.fuse(*tiny_models())
    monkeypatch.setattr(streaming, "CPU_BLOCK", block)
    assert_same_weights(method.fuse(*tiny_models()), whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, m: weighted_average.fuse(b, m, weights=[1, 2]), "weights has 2 numbers for 3"),
        (lambda b, m: weighted_average.fuse(b, m, weights=[1, -2, 3]), "negative"),
        (lambda b, m: weighted_average.fuse(b, m, weights=[0, 0, 0]), "sum to 0"),
        (lambda b, m: weighted_average.fuse(b, m, weights=[1, math.nan, 0]), r"weights\[1\] = nan is not a finite"),
        (lambda b, m: task_arithmetic.fuse(b, m, scale=math.inf), "scale = inf is not a finite"),
        (lambda b, m: task_arithmetic.fuse(b, m, scale=[0.1, 0.2]), "scale has 2 numbers for 3"),
        (lambda b, m: ties_merging.fuse(b, m, density=0), r"density = 0 is out of range; allowed: \(0, 1\]"),
        (lambda b, m: ties_merging.fuse(b, m, density=20), "density = 20 is out of range"),
        (lambda b, m: ties_merging.fuse(b, m, combine="median"), "'mean', 'sum', 'max'"),
        (lambda b, m: ties_merging.fuse(b, m, trim="layer"), "'global', 'tensor'"),
        (lambda b, m: ties_merging.fuse(b, m, zero_sign="+"), "'majority', 'positive'"),
        (lambda b, m: ties_merging.fuse(b, m, scale=math.nan), "not a finite number"),
    ],
)
def test_bad_hyperparameters(call, message):
    with pytest.raises(ParameterError, match=message):
        call(*tiny_models())


def test_overflow_of_half_precision_is_an_error():
    base, big = {"w": torch.zeros(2, dtype=torch.float16)}, {"w": torch.full((2,), 60000.0, dtype=torch.float16)}
    with pytest.raises(NonFiniteError, match="overflow"):
        task_arithmetic.fuse(base, [big], scale=2.0)


def test_large_finite_numbers_are_no_overflow():
    base, big = {"w": torch.zeros(8)}, {"w": torch.full((8,), 3e38)}
    assert torch.equal(simple_average.fuse(base, [big])["w"], big["w"])


class Scores(nn.Module):
    """A model that answers the same whatever it is asked."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, input):
        return self.rows


def test_ensemble_by_hand():
    a, b = Scores([2.0, 0.0]), Scores([0.0, 1.0])
    batch = {"input": torch.zeros(1)}
    logits = simple_ensemble.fuse(a, [a, b])(**batch)
    torch.testing.assert_close(logits, torch.tensor([[1.0, 0.5]]))
    chances = simple_ensemble.fuse(a, [a, b], average="probabilities")(**batch).exp()
    first = (1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(1))) / 2
    torch.testing.assert_close(chances, torch.tensor([[first, 1 - first]]))


def test_features_are_averaged_before_the_head_and_logits_after():
    a, b = Scores([1.0, 0.0]), Scores([0.0, 3.0])
    batch, square = {"input": torch.zeros(1)}, lambda features, _: features**2
    before = predict(simple_ensemble.fuse(a, [a, b], average="features"), square, batch)
    after = predict(simple_ensemble.fuse(a, [a, b], average="logits"), square, batch)
    torch.testing.assert_close(before, torch.tensor([[0.25, 2.25]]))
    torch.testing.assert_close(after, torch.tensor([[0.5, 4.5]]))


def test_members_in_one_forward_answer_as_a_loop_does():
    members = [tiny_model(seed) for seed in range(4)]
    inputs = torch.linspace(-2, 2, 30).reshape(10, 3)
    loop = Ensemble(members, "logits", batched=False)(input=inputs)
    stacked = Ensemble(members, "logits", batched=True)
    torch.testing.assert_close(stacked(input=inputs), loop)
    torch.testing.assert_close(loop, sum(member(inputs) for member in members) / 4)
    assert sum(p.numel() for p in stacked.parameters()) == 4 * sum(p.numel() for p in members[0].parameters())
