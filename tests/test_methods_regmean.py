"""RegMean against least squares on all the data, by hand where its pieces can be seen, and on awkward inputs."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from fusionlib.core import NonFiniteError, ParameterError
from fusionlib.methods import regmean
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.gram import gram_matrices, linear_layers, solve_symmetric
from fusionlib.testing import assert_same_weights, tiny_data, tiny_model


def linear(seed, bias=True, inputs=3, outputs=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs, bias=bias).eval()


@pytest.mark.parametrize(
    ("off_diagonal", "expected"), [(1.0, [1 / 9, 7 / 9]), (0.5, [23 / 39, 25 / 39]), (0.0, [1, 0.6])]
)
def test_by_hand(off_diagonal, expected):
    """Two inputs per task, one output.

    G_1 = [[1, 1/2], [1/2, 1/2]] and G_2 = [[0, 0], [0, 2]], so with a for the factor the system is
    [[1, a/2], [a/2, 5/2]] w = (1 - a/2, a/2 + 3/2), of determinant 5/2 - a^2/4.
    """
    inputs = {"one": [[1.0, 0.0], [1.0, 1.0]], "two": [[0.0, 2.0], [0.0, 0.0]]}

    def read(task, split, indices):
        return {"input": torch.tensor(inputs[task])[list(indices)]}, torch.zeros(len(indices))

    sizes = {(task, "train"): 2 for task in inputs}
    data = CalibrationData(tuple(inputs), sizes, read, heads={})
    models = [linear(0, bias=False, inputs=2, outputs=1) for _ in range(3)]
    for model, weight in zip(models, ([0.0, 0.0], [1.0, -1.0], [3.0, 1.0]), strict=True):
        model.weight.data = torch.tensor([weight])
    fused = regmean.fuse(models[0], models[1:], data=data, off_diagonal=off_diagonal)
    torch.testing.assert_close(fused.weight.detach(), torch.tensor([expected]))


def test_is_least_squares_on_all_the_data():
    models, data = [linear(1, bias=False), linear(2, bias=False)], tiny_data(2)
    fused = regmean.fuse(linear(0, bias=False), models, data=data, num_examples=40, off_diagonal=1.0, double=True)
    inputs = [next(data.draw(task, "train", 40, 40))["input"] for task in data.tasks]
    answers = torch.cat([model(x) for model, x in zip(models, inputs, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(inputs).double(), answers.detach().double()).solution.T
    torch.testing.assert_close(fused.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_without_off_diagonals_each_weight_is_weighed_by_the_size_of_its_input():
    models, data = [linear(1), linear(2)], tiny_data(2)
    fused = regmean.fuse(linear(0), models, data=data, num_examples=40, off_diagonal=0.0)
    squares = [next(data.draw(task, "train", 40, 40))["input"].square().mean(dim=0) for task in data.tasks]
    expected = (squares[0] * models[0].weight + squares[1] * models[1].weight) / (squares[0] + squares[1])
    torch.testing.assert_close(fused.weight, expected)
    torch.testing.assert_close(fused.bias, (models[0].bias + models[1].bias) / 2)


def test_everything_else_is_averaged():
    base, models = tiny_model(), [tiny_model(1), tiny_model(2)]
    fused = regmean.fuse(base, models, data=tiny_data(2), num_examples=16).state_dict()
    for key in ("0.bias", "1.weight", "1.running_mean", "3.bias"):
        torch.testing.assert_close(fused[key], (models[0].state_dict()[key] + models[1].state_dict()[key]) / 2)
    assert not torch.allclose(fused["3.weight"], (models[0][3].weight + models[1][3].weight) / 2)


def test_one_model_alone_is_unchanged_bit_by_bit():
    only = tiny_model(1)
    assert_same_weights(
        regmean.fuse(tiny_model(), [only], data=tiny_data(1), num_examples=4).state_dict(),
        only.state_dict(),
        rtol=0,
        atol=0,
    )


def test_inputs_that_say_nothing_leave_the_average():
    """The third input is always 0: its weights cannot be told, stay at the average, and a warning says so."""
    data = tiny_data(2)

    def read(task, split, indices):
        batch, labels = tiny_data(2).read(task, split, indices)
        return {"input": batch["input"] * torch.tensor([1.0, 1.0, 0.0])}, labels

    models = [linear(1), linear(2)]
    with pytest.warns(UserWarning, match="'weight' do not determine its weights"):
        fused = regmean.fuse(linear(0), models, data=dataclasses.replace(data, read=read))
    average = (models[0].weight + models[1].weight) / 2
    torch.testing.assert_close(fused.weight[:, 2], average[:, 2])
    assert not torch.allclose(fused.weight[:, :2], average[:, :2])


class Mixed(nn.Module):
    """GPT-2's Conv1D, which stores its weight transposed, beside a linear layer of the same matrix."""

    def __init__(self, matrix):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.conv, self.plain = Conv1D(matrix.shape[0], matrix.shape[1]), nn.Linear(*reversed(matrix.shape))
        with torch.no_grad():
            self.conv.weight.copy_(matrix.T)
            self.plain.weight.copy_(matrix)
            self.conv.bias.zero_(), self.plain.bias.zero_()

    def forward(self, input):
        return self.conv(input) + self.plain(input)


def test_conv1d_is_a_linear_layer_stored_the_other_way():
    generator = torch.Generator().manual_seed(3)
    models = [Mixed(torch.randn(4, 3, generator=generator)) for _ in range(3)]
    fused = regmean.fuse(models[0], models[1:], data=tiny_data(2))
    assert [flip for _, _, flip in linear_layers(fused)] == [True, False]
    torch.testing.assert_close(fused.conv.weight, fused.plain.weight.T)


def test_padding_is_not_counted():
    layer = nn.Sequential(linear(0))
    tokens = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, tokens, attention_mask):
            return self.layer(tokens)

    (gram,) = gram_matrices(Masked(), [{"tokens": tokens, "attention_mask": mask}]).values()
    kept = torch.stack([tokens[0, 0], tokens[0, 1], tokens[1, 0]])
    torch.testing.assert_close(gram, kept.T @ kept / 3)


def test_batches_make_no_difference_and_the_mode_is_kept():
    model, data = tiny_model().train(), tiny_data(1)
    model[1].eval()
    one = gram_matrices(model, data.draw("task 0", "train", 40, 40))
    many = gram_matrices(model, data.draw("task 0", "train", 40, 7))
    assert one.keys() == many.keys() == {"0", "3"}
    assert [module.training for module in model] == [True, False, True, True] and model.training
    for name, gram in one.items():
        torch.testing.assert_close(gram, many[name])


def test_singular_systems_get_the_smallest_solution():
    matrix = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    solution, unique = solve_symmetric(matrix, torch.tensor([[4.0], [0.0]]))
    assert not unique and solution.tolist() == [[2.0], [0.0]]
    solution, unique = solve_symmetric(torch.eye(2) * 2, torch.ones(2, 1))
    assert unique and solution.tolist() == [[0.5], [0.5]]


def test_a_system_that_only_rounding_makes_regular_is_singular():
    """Rows that sum to nothing, as after a layer normalisation: the direction of ones is never seen."""
    rows = torch.randn(400, 24, generator=torch.Generator().manual_seed(1))
    rows -= rows.mean(dim=1, keepdim=True)
    for seed in range(8):
        right = rows.T @ torch.randn(400, 2, generator=torch.Generator().manual_seed(seed))
        jitter = 1e-5 * torch.rand(24, generator=torch.Generator().manual_seed(seed))
        solution, unique = solve_symmetric(rows.T @ rows + jitter.diag(), right)
        expected = torch.linalg.lstsq(rows.T.double() @ rows.double(), right.double(), driver="gelsd").solution
        assert not unique
        torch.testing.assert_close(solution.double(), expected, rtol=1e-3, atol=1e-4)


def test_wide_layers_are_summed_in_parts():
    layer = linear(0, inputs=600, outputs=1)
    rows = torch.randn(50, 600, generator=torch.Generator().manual_seed(2))
    (gram,) = gram_matrices(layer, [{"input": rows[:20]}, {"input": rows[20:]}]).values()
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gram, rows.T @ rows / 50)


def test_padding_does_not_change_the_merge():
    class Masked(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.layer = linear(seed)

        def forward(self, tokens, attention_mask):
            return self.layer(tokens)

    def data(fill):
        def read(task, split, indices):
            tokens = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(len(task)))
            tokens[:, 2] = fill
            return {"tokens": tokens, "attention_mask": torch.tensor([[1, 1, 0]] * 4)}, torch.zeros(4)

        sizes = {(task, "train"): 4 for task in ("a", "bb")}
        return CalibrationData(("a", "bb"), sizes, read, heads={})

    fused = [regmean.fuse(Masked(0), [Masked(1), Masked(2)], data=data(fill)).state_dict() for fill in (0.0, 1e3)]
    assert_same_weights(*fused, rtol=0, atol=0)


def test_half_precision_is_rounded_once():
    models = [linear(seed).bfloat16() for seed in (0, 1, 2)]
    data = tiny_data(2)

    def read(task, split, indices):
        batch, labels = data.read(task, split, indices)
        return {"input": batch["input"].bfloat16().to(wanted)}, labels

    found = []
    for wanted in (torch.float32, torch.bfloat16):
        members = [copy.deepcopy(model).to(wanted) for model in models]
        found.append(regmean.fuse(members[0], members[1:], data=dataclasses.replace(data, read=read)).weight.detach())
    assert [weight.dtype for weight in found] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(found[1], found[0].bfloat16(), rtol=2**-8, atol=0)


def test_activations_that_overflow_are_refused():
    models = [linear(seed) for seed in (0, 1)]
    data = tiny_data(1)

    def read(task, split, indices):
        batch, labels = data.read(task, split, indices)
        return {"input": batch["input"] * 1e30}, labels

    with pytest.raises(NonFiniteError, match="layer '' receives on task 'task 0' holds NaN or Inf"):
        regmean.fuse(models[0], models[1:], data=dataclasses.replace(data, read=read))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"off_diagonal": 1.5}, r"off_diagonal = 1.5 is out of range; allowed: \[0, 1\]"),
        ({"ridge": -1}, "ridge = -1 is out of range"),
        ({"num_examples": 0}, "num_examples = 0"),
    ],
)
def test_bad_hyperparameters(given, message):
    with pytest.raises(ParameterError, match=message):
        regmean.fuse(tiny_model(), [tiny_model(1)], data=tiny_data(1), **given)


def test_models_and_tasks_must_pair():
    with pytest.raises(ParameterError, match="3 fine-tuned models were given with the data of 2 tasks"):
        regmean.fuse(tiny_model(), [tiny_model(i) for i in (1, 2, 3)], data=tiny_data(2))
