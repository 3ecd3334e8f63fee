"""Fisher information against closed forms, and against one backward pass per example and label."""

import copy
import itertools
import math

import pytest
import torch
from fisher_helpers import INPUTS, Branching, linear, logistic, variance
from torch import nn

from fusionlib.core import ParameterError
from fusionlib.ops.fisher import diagonal_fisher
from fusionlib.ops.linearized import Linearized
from fusionlib.ops.squares import one_by_one
from fusionlib.testing import assert_same_weights, tiny_data, tiny_model


def test_logistic_regression_in_closed_form():
    model = linear(0.3, -0.2, 0.5, bias=0.1)
    fisher = diagonal_fisher(model, logistic, [({"input": INPUTS}, None)])
    # d log p / dw is (y - p) x, and the variance of y is p (1 - p)
    torch.testing.assert_close(fisher["weight"], (variance(model) * INPUTS**2).mean(dim=0, keepdim=True))
    torch.testing.assert_close(fisher["bias"], variance(model).mean(dim=0))


def test_logistic_regression_in_numbers():
    # at log 3 times 1 and 2 the second class has the chances 3/4 and 9/10, of variance 3/16 and 9/100
    fisher = diagonal_fisher(linear(math.log(3)), logistic, [({"input": torch.tensor([[1.0], [2.0]])}, None)])
    torch.testing.assert_close(fisher["weight"], torch.tensor([[(3 / 16 + 4 * 9 / 100) / 2]]))
    torch.testing.assert_close(fisher["bias"], torch.tensor([(3 / 16 + 9 / 100) / 2]))


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

    def signed(model, batch, signs):
        log_p = logits(model, batch)[0].log_softmax(dim=-1)
        return (signs * log_p.detach().div(2).exp() * log_p).sum()

    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    squares = one_by_one(model, signed, {"input": inputs.expand(len(signs), 3)}, signs)
    mean = {name: value / len(signs) for name, value in squares.items()}
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
    torch.manual_seed(3)
    half = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().bfloat16()
    layer, inputs = copy.deepcopy(half).float(), torch.linspace(-2, 2, 96).reshape(3, 4, 8).bfloat16()

    def logits(model, batch):
        return model(batch["input"]).mean(dim=1)[:, :3]

    fisher = diagonal_fisher(layer, logits, [({"input": inputs.float()}, None)])
    assert_same_weights(fisher, brute_force(layer, logits, inputs.float()), rtol=1e-4)
    # the weights are rounded, and nothing after them
    assert_same_weights(diagonal_fisher(half, logits, [({"input": inputs}, None)]), fisher)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_tied_weight_has_one_fisher_information():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight

    fisher = diagonal_fisher(model, logits, [({"input": INPUTS}, None)])
    assert list(fisher) == ["0.weight"]
    assert_same_weights(fisher, brute_force(model, logits, INPUTS))


def test_a_linearised_model_has_that_of_its_expansion():
    # a linear model is its own expansion, wherever that starts
    model, start = linear(0.3, -0.2, 0.5), {"weight": torch.ones(1, 3)}
    fisher = diagonal_fisher(Linearized(model, ["weight"], start), logistic, [({"input": INPUTS}, None)])
    assert_same_weights(fisher, {"weight": (variance(model) * INPUTS**2).mean(dim=0, keepdim=True)})
    # of any other the derivative of the scores is that at the start, and their probabilities are the expansion's
    model, start = tiny_model(3), tiny_model(4)
    names = ["0.weight", "3.bias"]
    module = Linearized(model, names, {name: start.get_parameter(name).detach() for name in names})
    fisher = diagonal_fisher(module, logits, [({"input": INPUTS}, None)])
    assert_same_weights(fisher, brute_force(module, logits, INPUTS))
    chances = module(INPUTS).softmax(dim=-1).detach()
    torch.testing.assert_close(fisher["3.bias"], (chances * (1 - chances)).mean(dim=0))


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ParameterError, match=r"shape \(3,\)"):
        diagonal_fisher(linear(1.0), lambda model, batch: torch.zeros(3), [({"input": INPUTS}, None)])
    with pytest.raises(ParameterError, match="at least one example"):
        diagonal_fisher(linear(1.0), logistic, [])
