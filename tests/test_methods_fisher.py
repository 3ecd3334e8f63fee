"""Fisher merging worked by hand, and on models and inputs that could break it."""

import dataclasses
import math

import pytest
import torch
from fisher_helpers import INPUTS, Branching, linear, two_classes, variance
from torch import nn

from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError
from fusionlib.methods import fisher_merging
from fusionlib.testing import assert_same_weights, tiny_data, tiny_model


def logistic_data(*inputs, labels=None):
    names = tuple(f"task {index}" for index in range(len(inputs)))
    found = dict(zip(names, inputs, strict=True))
    count = len(inputs[0])
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels

    def read(task, split, indices):
        return {"input": found[task][list(indices)]}, labels[list(indices)]

    return dataclasses.replace(
        tiny_data(len(inputs)),
        sizes={(name, split): count for name in names for split in ("train", "val")},
        read=read,
        heads=dict.fromkeys(names, two_classes),
    )


def test_merge_in_numbers():
    # the first model is undecided about an input of 2, so F = 4/4 and 1/4; the second has F = 3/16 for both
    data = logistic_data(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    models = [linear(0.0), linear(math.log(3))]
    fused = fisher_merging.fuse(linear(5.0), models, data=data, normalize=False, floor=0.0)
    torch.testing.assert_close(fused.weight.detach(), torch.tensor([[3 / 19 * math.log(3)]]))
    torch.testing.assert_close(fused.bias.detach(), torch.tensor([0.0]))
    # normalised, these are (4, 1) / sqrt(17) and (1, 1) / sqrt(2)
    fused = fisher_merging.fuse(linear(5.0), models, data=data, floor=0.0)
    share = (1 / 2**0.5) / (1 / 2**0.5 + 4 / 17**0.5)
    torch.testing.assert_close(fused.weight.detach(), torch.tensor([[share * math.log(3)]]))


@pytest.mark.parametrize("normalize", [False, True])
def test_merge_formula(normalize):
    models = [linear(0.3, -0.2, 0.5, bias=0.1), linear(-1.0, 0.4, 0.0, bias=2.0)]
    inputs = [INPUTS, INPUTS.flip(1) * 0.5]
    expected, total = {}, {}
    for model, x in zip(models, inputs, strict=True):
        f = {"weight": (variance(model, x) * x**2).mean(0, keepdim=True), "bias": variance(model, x).mean(0)}
        norm = math.sqrt(sum(float((value**2).sum()) for value in f.values())) if normalize else 1.0
        for name, value in f.items():
            weight = value / norm + 0.01
            total[name] = total.get(name, 0) + weight
            expected[name] = expected.get(name, 0) + weight * model.state_dict()[name]
    fused = fisher_merging.fuse(
        linear(0.0, 0.0, 0.0), models, data=logistic_data(*inputs), floor=0.01, normalize=normalize
    )
    assert_same_weights(fused.state_dict(), {name: value / total[name] for name, value in expected.items()})


def test_equal_fisher_information_gives_the_plain_average():
    # p (1 - p) does not change with the sign of the scores, so that these two have one Fisher information
    models = [linear(0.3, -0.2, 0.5, bias=0.1), linear(-0.3, 0.2, -0.5, bias=-0.1)]
    fused = fisher_merging.fuse(linear(1.0, 1.0, 1.0), models, data=logistic_data(INPUTS, INPUTS), normalize=False)
    assert_same_weights(fused.state_dict(), linear(0.0, 0.0, 0.0).state_dict())


def test_a_large_floor_gives_the_plain_average():
    models = [tiny_model(1), tiny_model(2)]
    fused = fisher_merging.fuse(tiny_model(), models, data=tiny_data(2), floor=1e6, num_examples=8)
    for key, value in fused.state_dict().items():
        if value.is_floating_point():
            mean = (models[0].state_dict()[key] + models[1].state_dict()[key]) / 2
            torch.testing.assert_close(value, mean, msg=key)


def test_weights_without_information_and_buffers_are_averaged():
    base, models = Branching().eval(), [Branching().eval(), Branching().eval()]
    models[0].unused.data.fill_(3.0)
    models[1].layer[1].running_mean.fill_(4.0)
    fused = fisher_merging.fuse(base, models, data=tiny_data(2), floor=0.0, num_examples=8)
    torch.testing.assert_close(fused.unused.detach(), torch.full((2,), 2.0))
    torch.testing.assert_close(fused.layer[1].running_mean, torch.full((5,), 2.0))


def test_a_model_that_is_certain_of_everything():
    certain, other = linear(200.0, bias=1e4), linear(1.0)
    data = logistic_data(torch.ones(4, 1), torch.ones(4, 1))
    fused = fisher_merging.fuse(linear(0.0), [certain, other], data=data, floor=0.0)
    assert_same_weights(fused.state_dict(), other.state_dict())
    alone = fisher_merging.fuse(linear(0.0), [certain], data=logistic_data(torch.ones(4, 1)), floor=0.0)
    assert_same_weights(alone.state_dict(), certain.state_dict())


@pytest.mark.parametrize("labels", ["model", "data"])
def test_one_model_alone_is_unchanged(labels):
    fused = fisher_merging.fuse(tiny_model(), [tiny_model(1)], data=tiny_data(1), num_examples=8, labels=labels)
    assert_same_weights(fused.state_dict(), tiny_model(1).state_dict())


def test_batch_size_is_without_effect():
    data = dataclasses.replace(
        tiny_data(2), heads={f"task {i}": lambda features, _: features.repeat(1, 2) for i in (0, 1)}
    )
    models = [tiny_model(1), tiny_model(2)]
    whole = fisher_merging.fuse(tiny_model(), models, data=data, num_examples=20, batch_size=20)
    parts = fisher_merging.fuse(tiny_model(), models, data=data, num_examples=20, batch_size=3)
    assert_same_weights(parts.state_dict(), whole.state_dict())


def test_labels_are_asked_for_only_where_they_are_used():
    assert fisher_merging.card.needs_with({"labels": "model"}) == {"inputs"}
    assert fisher_merging.card.needs_with({"labels": "data"}) == {"inputs", "labels"}
    blind = dataclasses.replace(tiny_data(1), allowed=frozenset({"inputs"}))
    with pytest.raises(ParameterError, match="given none"):
        fisher_merging.fuse(tiny_model(), [tiny_model(1)], data=blind, labels="data")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"floor": -1e-6}, "floor = -1e-06 is out of range"),
        ({"floor": math.nan}, "floor = nan is not a finite number"),
        ({"labels": "true"}, "'model', 'data'"),
        ({"num_examples": 0}, "num_examples = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_bad_hyperparameters(given, message):
    with pytest.raises(ParameterError, match=message):
        fisher_merging.fuse(tiny_model(), [tiny_model(1)], data=tiny_data(1), **given)


def test_gradients_that_overflow_are_refused():
    data = logistic_data(torch.tensor([[1e25]]), torch.tensor([[1.0]]))
    with pytest.raises(NonFiniteError, match="the gradients of the model of 'task 0'"):
        fisher_merging.fuse(linear(0.0), [linear(0.0), linear(1.0)], data=data)


def test_models_that_do_not_fit_are_named():
    with pytest.raises(ParameterError, match="2 fine-tuned models were given with the data of 3 tasks"):
        fisher_merging.fuse(tiny_model(), [tiny_model(1), tiny_model(2)], data=tiny_data(3))
    with pytest.raises(KeyMismatch, match=r"finetuned\[0\] lacks"):
        fisher_merging.fuse(tiny_model(), [nn.Linear(3, 4)], data=tiny_data(1))
    broken = tiny_model(1)
    broken[3].weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"finetuned\[0\] has 1 of 20"):
        fisher_merging.fuse(tiny_model(), [broken], data=tiny_data(1))
