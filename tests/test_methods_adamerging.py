"""AdaMerging in both forms: what the result keeps, what the hyper-parameters do, and which inputs are refused."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError
from fusionlib.methods import layer_wise_adamerging, task_arithmetic, task_wise_adamerging
from fusionlib.testing import assert_same_weights, tiny_data, tiny_model

BOTH = [task_wise_adamerging, layer_wise_adamerging]
NUM_TASKS = 3


def models(dtype=torch.float32):
    base = tiny_model().to(dtype)
    return base, [tiny_model(seed).to(dtype) for seed in range(1, NUM_TASKS + 1)]


@pytest.mark.parametrize("method", BOTH)
def test_no_step_is_task_arithmetic(method):
    base, finetuned = models()
    fused = method.fuse(base, finetuned, data=tiny_data(NUM_TASKS), init=0.4, steps=0)
    states = [model.state_dict() for model in finetuned]
    assert_same_weights(fused.state_dict(), task_arithmetic.fuse(base.state_dict(), states, scale=0.4))
    assert fused.trajectory.shape[0] == 1 and fused.entropies.shape == (0, NUM_TASKS)


@pytest.mark.parametrize("method", BOTH)
def test_entropy_falls(method):
    fused = method.fuse(*models(), data=tiny_data(NUM_TASKS), lr=0.02, steps=60, batch_size=40)
    assert fused.entropies[-1].sum() < fused.entropies[0].sum()


def test_what_the_result_keeps():
    given = {"data": tiny_data(NUM_TASKS), "steps": 4, "batch_size": 8}
    by_task = task_wise_adamerging.fuse(*models(), **given)
    assert by_task.coefficients.shape == (NUM_TASKS,) and by_task.trajectory.shape == (5, NUM_TASKS)
    assert torch.equal(by_task.trajectory[-1], by_task.coefficients)
    assert torch.equal(by_task.trajectory[0], torch.full((NUM_TASKS,), 0.3))
    by_layer = layer_wise_adamerging.fuse(*models(), **given)
    names = [name for name, _ in tiny_model().named_parameters()]
    assert list(by_layer.coefficients) == names and by_layer.trajectory.shape == (5, len(names), NUM_TASKS)
    assert torch.equal(torch.stack(list(by_layer.coefficients.values())), by_layer.trajectory[-1])
    for fused in (by_task, by_layer):
        assert fused.entropies.shape == (4, NUM_TASKS)
        assert fused.state_dict().keys() == tiny_model().state_dict().keys()
        assert torch.equal(copy.deepcopy(fused).trajectory, fused.trajectory)


@pytest.mark.parametrize("method", BOTH)
def test_buffers_are_merged_with_the_first_coefficients(method):
    base, finetuned = models()
    for index, model in enumerate((base, *finetuned)):
        model[1].running_mean.fill_(index)
        model[1].num_batches_tracked.fill_(10 + index)
    fused = method.fuse(base, finetuned, data=tiny_data(NUM_TASKS), lr=0.1, steps=5, batch_size=8)
    torch.testing.assert_close(fused[1].running_mean, torch.full((5,), 0.3 * (1 + 2 + 3)))
    assert fused[1].num_batches_tracked == 10


@pytest.mark.parametrize("method", BOTH)
def test_clamp(method):
    free = method.fuse(*models(), data=tiny_data(NUM_TASKS), lr=0.1, steps=10, batch_size=8)
    assert free.trajectory.max() > 0.35 or free.trajectory.min() < 0.25
    for limits in ((0.25, 0.35), [0.25, 0.35]):
        kept = method.fuse(*models(), data=tiny_data(NUM_TASKS), lr=0.1, steps=10, batch_size=8, clamp=limits)
        assert kept.trajectory.min() >= 0.25 and kept.trajectory.max() <= 0.35
    kept.zero_grad()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in kept.parameters())


@pytest.mark.parametrize("method", BOTH)
def test_frozen_parameters_are_merged_and_stay_frozen(method):
    base, finetuned = models()
    base[0].weight.requires_grad_(False)
    fused = method.fuse(base, finetuned, data=tiny_data(NUM_TASKS), lr=0.1, steps=3, batch_size=8)
    free = method.fuse(*models(), data=tiny_data(NUM_TASKS), lr=0.1, steps=3, batch_size=8)
    assert not fused[0].weight.requires_grad and fused[3].weight.requires_grad
    assert_same_weights(fused.state_dict(), free.state_dict(), rtol=0, atol=0)


class Tied(nn.Module):
    """Two layers with one weight, and a parameter that nothing uses."""

    def __init__(self, seed):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.idle = nn.Parameter(torch.full((2,), float(seed)))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for parameter in (self.one.weight, self.one.bias, self.two.bias):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.two.weight = self.one.weight

    def forward(self, input):
        return self.two(self.one(input).tanh())


@pytest.mark.parametrize("method", BOTH)
def test_tied_and_idle_parameters(method):
    data = tiny_data(2)
    data = dataclasses.replace(data, heads=dict.fromkeys(data.tasks, lambda features, batch: features))
    fused = method.fuse(Tied(0), [Tied(1), Tied(2)], data=data, lr=0.1, steps=3, batch_size=8)
    assert fused.one.weight is fused.two.weight
    if method is layer_wise_adamerging:
        assert "two.weight" not in fused.coefficients
        torch.testing.assert_close(fused.coefficients["idle"], torch.full((2,), 0.3))
        torch.testing.assert_close(fused.idle.detach(), torch.full((2,), 0.9))


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(method, dtype):
    data = tiny_data(NUM_TASKS)

    def read(task, split, indices):
        batch, labels = data.read(task, split, indices)
        return {"input": batch["input"].to(dtype)}, labels

    half = dataclasses.replace(data, read=read)
    fused = method.fuse(*models(dtype), data=half, lr=0.01, steps=3, batch_size=8)
    assert fused[0].weight.dtype == dtype and fused.trajectory.dtype == torch.float32
    full = method.fuse(*models(), data=data, lr=0.01, steps=3, batch_size=8)
    torch.testing.assert_close(fused.entropies, full.entropies, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", BOTH)
def test_in_and_out_of_no_grad(method):
    given = {"data": tiny_data(2), "steps": 2, "batch_size": 8}
    with torch.no_grad():
        inside = method.fuse(tiny_model(), [tiny_model(1), tiny_model(2)], **given)
    outside = method.fuse(tiny_model(), [tiny_model(1), tiny_model(2)], **given)
    assert_same_weights(inside.state_dict(), outside.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": math.nan}, "init = nan is not a finite number"),
        ({"lr": 0}, "lr = 0 is out of range"),
        ({"lr": -1e-3}, "lr = -0.001 is out of range"),
        ({"lr": math.inf}, "lr = inf is not a finite number"),
        ({"steps": -1}, "steps = -1 is not allowed; it must be an integer, 0 or greater"),
        ({"steps": 2.5}, "steps = 2.5"),
        ({"steps": True}, "steps = True"),
        ({"batch_size": 0}, "batch_size = 0 is not allowed; it must be an integer, 1 or greater"),
        ({"clamp": 1.0}, r"clamp = 1.0 is not allowed; it must be \(low, high\)"),
        ({"clamp": (0, 1, 2)}, "clamp = "),
        ({"clamp": (1, 0)}, "is empty"),
        ({"clamp": (0, math.nan)}, r"clamp\[1\] = nan"),
        ({"clamp": (0.5, 1)}, r"init = 0.3 is out of range; allowed: \[0.5, 1\]"),
        ({"split": "validation"}, "split = 'validation' is not known"),
    ],
)
def test_bad_hyperparameters(method, given, message):
    with pytest.raises(ParameterError, match=message):
        method.fuse(*models(), data=tiny_data(NUM_TASKS), **{"steps": 1, **given})


@pytest.mark.parametrize("method", BOTH)
def test_test_inputs_only_where_they_were_asked_for(method):
    assert method.card.needs_with({"split": "val"}) == {"inputs"}
    assert method.card.needs_with({"split": "test"}) == {"inputs", "test-inputs"}
    careful = dataclasses.replace(tiny_data(NUM_TASKS), allowed=frozenset({"inputs"}))
    with pytest.raises(ParameterError, match="does not say that it uses test inputs"):
        method.fuse(*models(), data=careful, steps=1, split="test")
    assert method.fuse(*models(), data=tiny_data(NUM_TASKS), steps=1, batch_size=8, split="test")


@pytest.mark.parametrize("method", BOTH)
def test_models_that_do_not_fit(method):
    base, finetuned = models()
    with pytest.raises(ParameterError, match="3 fine-tuned models were given with the data of 2 tasks"):
        method.fuse(base, finetuned, data=tiny_data(2), steps=1)
    with pytest.raises(KeyMismatch, match=r"finetuned\[2\] lacks"):
        method.fuse(base, [*finetuned[:2], nn.Sequential(nn.Linear(3, 5))], data=tiny_data(3), steps=1)
    with torch.no_grad():
        finetuned[1][0].bias[2] = math.nan
    with pytest.raises(NonFiniteError, match=r"finetuned\[1\] has 1 of 5 values .* under '0.bias'"):
        method.fuse(base, finetuned, data=tiny_data(3), steps=1)


@pytest.mark.parametrize("method", BOTH)
def test_steps_that_lead_to_nan_are_an_error(method):
    data = tiny_data(NUM_TASKS)
    blind = dataclasses.replace(data, heads=dict.fromkeys(data.tasks, lambda features, batch: features * math.inf))
    with pytest.raises(NonFiniteError, match="coefficients are not finite"):
        method.fuse(*models(), data=blind, steps=2, batch_size=8)
