"""Fisher information against closed forms, and the merge that it weighs, worked by hand."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError
from fusionlib.methods import fisher_merging
from fusionlib.ops.fisher import diagonal_fisher, per_example_gradients
from fusionlib.testing import assert_same_weights, tiny_data, tiny_model

INPUTS = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0], [-2.0, 1.0, 1.0], [0.0, 3.0, -1.0]])


def linear(*weight, bias=0.0):
    model = nn.Linear(len(weight), 1)
    model.weight.data = torch.tensor([weight])
    model.bias.data = torch.tensor([bias])
    return model.eval()


def two_classes(features, batch):
    """Scores (0, z): the probability of the second class is the logistic function of z."""
    return torch.cat([torch.zeros_like(features), features], dim=1)


def logistic(model, batch):
    return two_classes(model(**batch), batch)


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


def variance(model, inputs=INPUTS):
    p = model(inputs).sigmoid().detach()
    return p * (1 - p)


def test_logistic_regression_in_closed_form():
    model = linear(0.3, -0.2, 0.5, bias=0.1)
    fisher = diagonal_fisher(model, logistic, [({"input": INPUTS}, None)])
    # d log p / dw is (y - p) x, and the variance of y is p (1 - p)
    torch.testing.assert_close(fisher["weight"], (variance(model) * INPUTS**2).mean(dim=0, keepdim=True))
    torch.testing.assert_close(fisher["bias"], variance(model).mean(dim=0))


def test_given_labels():
    model, labels = linear(0.3, -0.2, 0.5), torch.tensor([0, 1, 1, 0])
    fisher = diagonal_fisher(model, logistic, [({"input": INPUTS}, labels)])
    error = labels[:, None] - model(INPUTS).sigmoid().detach()
    torch.testing.assert_close(fisher["weight"], (error**2 * INPUTS**2).mean(dim=0, keepdim=True))


def test_gradients_are_squared_per_example_and_not_per_batch():
    model, twice = linear(0.0), torch.tensor([[2.0], [-2.0]])
    fisher = diagonal_fisher(model, logistic, [({"input": twice}, torch.tensor([1, 1]))])
    # at p = 1/2 the two gradients are +1 and -1: their squares average 1, the square of their sum is 0
    torch.testing.assert_close(fisher["weight"], torch.ones(1, 1))
    scores = logistic(model, {"input": twice})
    (summed,) = torch.autograd.grad(nn.functional.cross_entropy(scores, torch.tensor([1, 1])), [model.weight])
    assert float(summed) == 0


def logits(model, batch):
    return model(**batch)


def brute_force(model, logits, inputs):
    """One ordinary backward pass for every example and label."""
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for row in inputs:
        log_p = logits(model, {"input": row[None]})[0].log_softmax(dim=-1)
        for value in log_p:
            found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(total, found, strict=True):
                total[name] += value.detach().exp() * gradient**2 / len(inputs)
    return total


def test_equals_one_backward_pass_per_example_and_label():
    model, data = tiny_model(3), tiny_data(1)
    inputs = torch.linspace(-2, 2, 21).reshape(7, 3)

    def logits(model, batch):
        return data.logits("task 0", model, batch)

    expected = brute_force(model, logits, inputs)
    for chunk_bytes in (1, 500, 1 << 20):
        fisher = diagonal_fisher(model, logits, [({"input": inputs}, None)], chunk_bytes=chunk_bytes)
        assert_same_weights(fisher, expected)
    parts = [({"input": part}, None) for part in inputs.split(3)]
    assert_same_weights(diagonal_fisher(model, logits, parts), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_signs_have_the_exact_expectation():
    model, inputs = tiny_model(2), torch.tensor([[0.4, -1.0, 2.0]])

    gradients = per_example_gradients(model, logits, own=True)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        found = gradients(parameters, {"input": inputs.expand(len(signs), 3)}, signs)
    mean = {name: value.square().mean(dim=0) for name, value in found.items()}
    assert_same_weights(mean, brute_force(model, logits, inputs))


def test_many_classes_are_estimated_the_same_way_every_time():
    model, inputs = tiny_model(2), torch.linspace(-2, 2, 1200).reshape(400, 3)

    def fisher(**how):
        return diagonal_fisher(model, logits, [({"input": inputs}, None)], **how)

    first, second = (fisher(exact_classes=2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert_same_weights(first, second, rtol=0, atol=0)
    exact = torch.cat([value.flatten() for value in fisher().values()])
    estimate = torch.cat([value.flatten() for value in first.values()])
    assert not torch.equal(exact, estimate)
    assert torch.nn.functional.cosine_similarity(exact, estimate, dim=0) > 0.95


class Branching(nn.Module):
    """Looks at a value to decide what to do, which cannot be vectorised; has a weight that is never used."""

    def __init__(self):
        super().__init__()
        self.layer = tiny_model(1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, input):
        return self.layer(input) if bool(input.sum() > 0) else self.layer(-input)


def test_models_that_branch_and_weights_without_gradient():
    data, inputs = tiny_data(1), torch.linspace(-2, 2, 12).reshape(4, 3)
    model = Branching().eval()

    def logits(model, batch):
        return data.logits("task 0", model, batch)

    fisher = diagonal_fisher(model, logits, [({"input": inputs}, None)])
    assert torch.equal(fisher.pop("unused"), torch.zeros(2))
    flipped = torch.where(inputs.sum(dim=1, keepdim=True) > 0, inputs, -inputs)
    expected = diagonal_fisher(model.layer, logits, [({"input": flipped}, None)])
    assert_same_weights({name.removeprefix("layer."): value for name, value in fisher.items()}, expected)


def test_attention_and_half_precision():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    def logits(model, batch):
        return model(batch["input"]).mean(dim=1)[:, :3]

    inputs = torch.linspace(-2, 2, 96).reshape(3, 4, 8)
    fisher = diagonal_fisher(layer, logits, [({"input": inputs}, None)])
    assert_same_weights(fisher, brute_force(layer, logits, inputs), rtol=1e-4)
    half = diagonal_fisher(layer.to(torch.bfloat16), logits, [({"input": inputs.bfloat16()}, None)])
    assert all(value.dtype == torch.float32 for value in half.values())
    assert next(layer.parameters()).dtype == torch.bfloat16
    assert_same_weights(half, fisher, rtol=0.2, atol=0.02)


def test_a_tied_weight_has_one_fisher_information():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight

    fisher = diagonal_fisher(model, logits, [({"input": INPUTS}, None)])
    assert list(fisher) == ["0.weight"]
    assert_same_weights(fisher, brute_force(model, logits, INPUTS))


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ParameterError, match=r"shape \(3,\)"):
        diagonal_fisher(linear(1.0), lambda model, batch: torch.zeros(3), [({"input": INPUTS}, None)])
    with pytest.raises(ParameterError, match="at least one example"):
        diagonal_fisher(linear(1.0), logistic, [])


@pytest.mark.parametrize("normalize", [False, True])
def test_merge_by_hand(normalize):
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
        ({"floor": math.nan}, "floor = nan is out of range"),
        ({"labels": "true"}, "'model', 'data'"),
        ({"num_examples": 0}, "num_examples = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_bad_hyperparameters(given, message):
    with pytest.raises(ParameterError, match=message):
        fisher_merging.fuse(tiny_model(), [tiny_model(1)], data=tiny_data(1), **given)


def test_models_that_do_not_fit_are_named():
    with pytest.raises(ParameterError, match="2 fine-tuned models were given with the data of 3 tasks"):
        fisher_merging.fuse(tiny_model(), [tiny_model(1), tiny_model(2)], data=tiny_data(3))
    with pytest.raises(KeyMismatch, match=r"finetuned\[0\] lacks"):
        fisher_merging.fuse(tiny_model(), [nn.Linear(3, 4)], data=tiny_data(1))
    broken = tiny_model(1)
    broken[3].weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"finetuned\[0\] has 1 of 20"):
        fisher_merging.fuse(tiny_model(), [broken], data=tiny_data(1))
