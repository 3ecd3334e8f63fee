"""The pieces of AdaMerging: the entropy by hand, and the gradient of the coefficients against two other ways."""

import dataclasses
import math

import pytest
import torch
from torch.func import functional_call

from fusionlib.methods import layer_wise_adamerging, task_wise_adamerging
from fusionlib.ops import blending
from fusionlib.ops.adapting import entropy_backward
from fusionlib.ops.blending import Blend
from fusionlib.ops.entropy import mean_entropy
from fusionlib.testing import assert_same_weights, tiny_data, tiny_model, tiny_transformer

BOTH = [task_wise_adamerging, layer_wise_adamerging]
NUM_TASKS = 3


def models(dtype=torch.float32):
    base = tiny_model().to(dtype)
    return base, [tiny_model(seed).to(dtype) for seed in range(1, NUM_TASKS + 1)]


def double_data():
    data = tiny_data(NUM_TASKS)

    def read(task, split, indices):
        batch, labels = data.read(task, split, indices)
        return {"input": batch["input"].double()}, labels

    return dataclasses.replace(data, read=read)


def first_batches(data, size=8):
    return [next(data.stream(task, "val", size)) for task in data.tasks]


# Two classes with chances p and 1 - p: H = -p log p - (1 - p) log(1 - p).
def test_entropy_by_hand():
    torch.testing.assert_close(mean_entropy(torch.zeros(1, 2)), torch.tensor(math.log(2)))
    quarter = torch.tensor([[0.0, math.log(3)]])  # chances 1/4 and 3/4
    expected = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    torch.testing.assert_close(mean_entropy(quarter), torch.tensor(expected))
    both = torch.cat([quarter, torch.zeros(1, 2)])
    torch.testing.assert_close(mean_entropy(both), torch.tensor((expected + math.log(2)) / 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [-1e4, -math.inf])
def test_entropy_of_extreme_logits(other, dtype):
    logits = torch.tensor([[1e4, other], [other, 0.0]], dtype=dtype, requires_grad=True)
    entropy = mean_entropy(logits)
    entropy.backward()
    assert entropy.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
    assert entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_entropy_of_many_classes_has_its_maximum_where_all_are_equal():
    torch.testing.assert_close(mean_entropy(torch.full((4, 10), 7.0)), torch.tensor(math.log(10)))
    assert mean_entropy(torch.linspace(-1, 1, 40).reshape(4, 10)) < math.log(10)


@pytest.fixture(params=[False, True], ids=["task-wise", "layer-wise"])
def by_layer(request):
    return request.param


@pytest.fixture(params=[7, 1 << 19], ids=["short stretches", "whole tensors"])
def blend(request, by_layer, monkeypatch):
    """A merged model in float64, at coefficients that all differ."""
    monkeypatch.setattr(blending, "CPU_BLOCK", request.param)
    made = Blend(*models(torch.float64), 0.3, by_layer=by_layer)
    generator = torch.Generator().manual_seed(3)
    made.coefficients.add_(0.2 * torch.randn(made.coefficients.shape, generator=generator, dtype=torch.float64))
    made.apply()
    return made


def test_gradient_is_that_of_finite_differences(blend):
    data = double_data()
    batches = first_batches(data)
    entropy_backward(blend, data, batches)
    gradient = blend.gradient()
    assert gradient.shape == blend.coefficients.shape

    def loss(index, change):
        blend.coefficients[index] += change
        blend.apply()
        with torch.no_grad():
            logits = [data.logits(task, blend.model, batch) for task, batch in zip(data.tasks, batches, strict=True)]
        blend.coefficients[index] -= change
        return sum(mean_entropy(scores) for scores in logits)

    for index in torch.cartesian_prod(*map(torch.arange, gradient.shape)).tolist():
        index = tuple(index)
        slope = (loss(index, 1e-5) - loss(index, -1e-5)) / 2e-5
        torch.testing.assert_close(gradient[index], slope, rtol=1e-6, atol=1e-8)


def merged_in_the_graph(table, names, by_layer, init=0.3, dtype=torch.float64):
    """Every parameter as a function of the coefficients, all T task vectors in autograd's graph."""
    base, finetuned = models(dtype)
    start, states = base.state_dict(), [model.state_dict() for model in finetuned]
    merged = {}
    for name, value in start.items():
        if value.is_floating_point():
            row = table[names.index(name) if by_layer else 0] if name in names else [init] * NUM_TASKS
            merged[name] = value + sum(c * (state[name] - value) for c, state in zip(row, states, strict=True))
    return base, merged


def test_gradient_is_that_of_autograd_through_all_the_models(blend, by_layer):
    data = double_data()
    batches = first_batches(data)
    entropies = entropy_backward(blend, data, batches)
    table = blend.coefficients.clone().requires_grad_()
    base, merged = merged_in_the_graph(table, blend.names, by_layer)
    losses = [
        mean_entropy(data.heads[task](functional_call(base, merged, (), dict(batch)), batch))
        for task, batch in zip(data.tasks, batches, strict=True)
    ]
    sum(losses).backward()
    torch.testing.assert_close(entropies, torch.stack(losses).detach())
    torch.testing.assert_close(blend.gradient(), table.grad, rtol=1e-10, atol=1e-12)
    for name, parameter in blend.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), merged[name].detach(), rtol=1e-12, atol=1e-12)


def test_ten_steps_are_those_of_the_plain_version(by_layer):
    method = BOTH[by_layer]
    fused = method.fuse(*models(torch.float64), data=double_data(), lr=0.05, steps=10, batch_size=8)
    data, names = double_data(), [name for name, _ in tiny_model().named_parameters()]
    table = torch.full((len(names) if by_layer else 1, NUM_TASKS), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.05)
    streams = {task: data.stream(task, "val", 8) for task in data.tasks}
    for _ in range(10):
        base, merged = merged_in_the_graph(table, names, by_layer)
        loss = 0
        for task, batches in streams.items():
            batch = next(batches)
            loss = loss + mean_entropy(data.heads[task](functional_call(base, merged, (), dict(batch)), batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = merged_in_the_graph(table.detach(), names, by_layer)[1]
    found = {name: value for name, value in fused.state_dict().items() if value.is_floating_point()}
    assert_same_weights(found, expected, rtol=1e-8, atol=1e-10)


def test_the_graph_of_a_vision_tower_holds_one_model():
    """Nothing of full size is kept for each task: what autograd saves does not grow with the number of models."""
    saved = []
    for count in (1, 4):
        blend = Blend(tiny_transformer(0), [tiny_transformer(s) for s in range(1, count + 1)], 0.3, by_layer=True)
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, n=sizes: (n.append(x.numel()), x)[1], lambda x: x)
        with hooks:
            blend.model(pixel_values=torch.zeros(2, 3, 8, 8)).image_embeds.sum().backward()
        saved.append(sum(sizes))
    assert saved[0] == saved[1]
