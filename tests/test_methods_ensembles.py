"""Oracles of the weighted ensemble and the max-model predictor: loops, and numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError
from fusionlib.methods import max_model_predictor, simple_ensemble, weighted_ensemble
from fusionlib.ops.modules import Ensemble, MaxEnsemble, predict
from fusionlib.testing import tiny_model

INPUTS = torch.linspace(-2, 2, 30).reshape(10, 3)


class Scores(nn.Module):
    """A model that answers the same whatever it is asked."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, input):
        return self.rows


BATCH = {"input": torch.zeros(1)}


def test_weighted_ensemble_by_hand():
    a, b = Scores([2.0, 0.0]), Scores([0.0, 1.0])
    logits = weighted_ensemble.fuse(a, [a, b], weights=[3, 1])(**BATCH)
    torch.testing.assert_close(logits, torch.tensor([[1.5, 0.25]]))
    plain = weighted_ensemble.fuse(a, [a, b], weights=[3, -1], normalize=False)(**BATCH)
    torch.testing.assert_close(plain, torch.tensor([[6.0, -1.0]]))
    chances = weighted_ensemble.fuse(a, [a, b], weights=[3, 1], average="probabilities")(**BATCH).exp()
    first = (3 / (1 + math.exp(-2)) + 1 / (1 + math.exp(1))) / 4
    torch.testing.assert_close(chances, torch.tensor([[first, 1 - first]]))


def test_features_are_weighted_before_the_head_and_logits_after():
    a, b = Scores([1.0, 0.0]), Scores([0.0, 3.0])

    def square(features, batch):
        return features**2

    given = {"weights": [1, 3]}
    before = predict(weighted_ensemble.fuse(a, [a, b], average="features", **given), square, BATCH)
    after = predict(weighted_ensemble.fuse(a, [a, b], average="logits", **given), square, BATCH)
    torch.testing.assert_close(before, torch.tensor([[0.0625, 5.0625]]))
    torch.testing.assert_close(after, torch.tensor([[0.25, 6.75]]))


@pytest.mark.parametrize("average", ["logits", "probabilities", "features"])
def test_weighted_ensemble_equals_a_loop(average):
    members, weights = [tiny_model(seed) for seed in range(4)], [0.5, 0.0, 2.0, 1.0]
    total = torch.zeros(10, 4)
    for member, weight in zip(members, weights, strict=True):
        output = member(INPUTS)
        total += weight / 3.5 * (output.softmax(dim=-1) if average == "probabilities" else output)
    expected = total.log() if average == "probabilities" else total
    torch.testing.assert_close(
        weighted_ensemble.fuse(members[0], members, weights=weights, average=average)(input=INPUTS), expected
    )


@pytest.mark.parametrize("average", ["logits", "probabilities", "features"])
def test_equal_weights_are_the_simple_ensemble(average):
    members = [tiny_model(seed) for seed in range(3)]
    weighted = weighted_ensemble.fuse(members[0], members, weights=[7, 7, 7], average=average)
    torch.testing.assert_close(
        weighted(input=INPUTS), simple_ensemble.fuse(members[0], members, average=average)(input=INPUTS)
    )


def test_a_single_weight_is_that_member():
    members = [tiny_model(seed) for seed in range(3)]
    only = weighted_ensemble.fuse(members[0], members, weights=[0, 5, 0])
    torch.testing.assert_close(only(input=INPUTS), members[1](INPUTS))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": [1, 2]}, "weights has 2 numbers for 3"),
        ({"weights": [1, -2, 3]}, "negative"),
        ({"weights": [0, 0, 0]}, "sum to 0"),
        ({"weights": [1, math.nan, 0]}, r"weights\[1\] = nan is not a finite number"),
        ({"weights": [1, 1, 1], "average": "votes"}, "'logits', 'probabilities', 'features'"),
        ({"weights": [2, -1, 0], "normalize": False, "average": "probabilities"}, "make no probability"),
        ({"weights": [0, 0, 0], "normalize": False, "average": "probabilities"}, "make no probability"),
    ],
)
def test_bad_weights(given, message):
    members = [tiny_model(seed) for seed in range(3)]
    with pytest.raises(ParameterError, match=message):
        weighted_ensemble.fuse(members[0], members, **given)


# Softmax of the sure member: 1 / (1 + 2 exp(-4)) = .96 for class 2. The loud one is torn between 0 and 1.
SURE, LOUD = [0.0, 0.0, 4.0], [5.0, 4.9, 0.0]


def test_maximum_by_hand_is_not_the_most_confident_member():
    sure, loud = Scores(SURE), Scores(LOUD)
    logits = max_model_predictor.fuse(sure, [sure, loud])(**BATCH)
    assert torch.equal(logits, torch.tensor([[5.0, 4.9, 4.0]]))
    chances = torch.tensor([SURE, LOUD]).softmax(dim=-1)
    most_confident = chances[chances.amax(dim=-1).argmax()].argmax().item()
    assert (most_confident, logits.argmax().item()) == (2, 0)


def test_centred_maximum_by_hand():
    # means 4/3 and 3.3: the sure member's best class is 8/3 above its own level, the loud one's 1.7 above its own
    sure, loud = Scores(SURE), Scores(LOUD)
    logits = max_model_predictor.fuse(sure, [sure, loud], center=True)(**BATCH)
    torch.testing.assert_close(logits, torch.tensor([[1.7, 1.6, 8 / 3]]))
    louder = Scores([value + 100 for value in LOUD])
    torch.testing.assert_close(max_model_predictor.fuse(sure, [sure, louder], center=True)(**BATCH), logits)


def test_maximum_differs_from_the_mean():
    sure, loud = Scores([9.0, 0.0]), Scores([0.0, 8.0])
    third = Scores([0.0, 5.0])
    members = [sure, loud, third]
    assert max_model_predictor.fuse(sure, members)(**BATCH).argmax() == 0
    assert simple_ensemble.fuse(sure, members)(**BATCH).argmax() == 1


def test_the_predicted_class_is_that_of_the_largest_logit_of_all():
    members = [tiny_model(seed) for seed in range(5)]
    logits = torch.stack([member(INPUTS) for member in members])
    expected = logits.permute(1, 0, 2).flatten(1).argmax(dim=-1) % 4
    predicted = max_model_predictor.fuse(members[0], members)(input=INPUTS).argmax(dim=-1)
    assert torch.equal(predicted, expected)


def test_the_head_comes_before_the_maximum():
    a, b = Scores([1.0, 0.0]), Scores([0.0, 3.0])

    def negative(features, batch):
        return -features

    answer = predict(max_model_predictor.fuse(a, [a, b]), negative, BATCH)
    assert torch.equal(answer, torch.tensor([[0.0, 0.0]]))


def test_maximum_in_one_forward_is_that_of_a_loop():
    members = [tiny_model(seed) for seed in range(4)]
    loop, stacked = MaxEnsemble(members, batched=False), MaxEnsemble(members, batched=True)
    expected = torch.stack([member(INPUTS) for member in members]).max(dim=0).values
    torch.testing.assert_close(loop(input=INPUTS), expected)
    torch.testing.assert_close(stacked(input=INPUTS), expected)


class Tied(nn.Module):
    """Maps words to vectors and back with one matrix, and holds a buffer that is not saved, as language models do."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.words = nn.Embedding.from_pretrained(torch.randn(6, 3, generator=generator))
        self.back = nn.Linear(3, 6, bias=False)
        self.back.weight = self.words.weight
        self.register_buffer("shift", torch.randn(3, generator=generator), persistent=False)

    def forward(self, input):
        return self.back(self.words(input) + self.shift)


def test_tied_weights_and_unsaved_buffers_in_one_forward():
    members = [Tied(seed).eval() for seed in range(3)]
    words = torch.tensor([[0, 5], [2, 2]])
    expected = torch.stack([member(words) for member in members])
    ensemble = Ensemble(members, "logits", batched=True)
    torch.testing.assert_close(ensemble.features({"input": words}), expected)
    assert sum(p.numel() for p in ensemble.parameters()) == 3 * 18
    apart = ensemble.unstacked()
    torch.testing.assert_close(torch.stack([member(words) for member in apart]), expected)
    assert all(member.back.weight is member.words.weight for member in apart)


def test_a_member_alone_does_not_follow_the_ensemble():
    ensemble = Ensemble([tiny_model(0), tiny_model(1)], "logits", batched=True)
    member = ensemble.unstacked()[1]
    before = member(INPUTS).clone()
    for parameter in ensemble.parameters():
        parameter.zero_()
    assert torch.equal(member(INPUTS), before)


def test_half_precision_is_averaged_in_float32():
    row = torch.arange(1.0, 9.0, dtype=torch.bfloat16)
    members = [Scores([[0.0] * 8]) for _ in range(3)]
    for index, member in enumerate(members):
        member.rows = nn.Parameter(row.unsqueeze(0) * (1 + index / 128))
    expected = torch.stack([m.rows.float() for m in members]).mean(dim=0).bfloat16()
    assert torch.equal(simple_ensemble.fuse(members[0], members)(**BATCH), expected)


def test_small_probabilities_keep_their_logarithm():
    far = Scores([0.0, 300.0])
    chances = weighted_ensemble.fuse(far, [far, far], weights=[1, 0], average="probabilities")(**BATCH)
    torch.testing.assert_close(chances, torch.tensor([[-300.0, 0.0]]))


def test_members_of_another_architecture_are_refused():
    with pytest.raises(KeyMismatch, match="one architecture"):
        max_model_predictor.fuse(tiny_model(), [tiny_model(), nn.Linear(3, 4)])
    with pytest.raises(KeyMismatch, match="one architecture"):
        weighted_ensemble.fuse(tiny_model(), [tiny_model(), nn.Linear(3, 4)], weights=[1, 1])


class Doubled(nn.Module):
    """Keeps a tensor that hangs on a graph as a plain attribute, and counts its answers in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.twice = 2 * self.layer.weight
        self.register_buffer("answers", torch.zeros(()))

    def forward(self, input):
        self.answers += 1
        return nn.functional.linear(input, self.twice)


@pytest.mark.parametrize("batched", [False, True])
def test_members_share_memory_and_change_nothing(batched):
    members = [Doubled().train() for _ in range(2)]
    ensemble = Ensemble(members, "logits", batched=batched)
    if not batched:
        assert ensemble.members[0].layer.weight.data_ptr() == members[0].layer.weight.data_ptr()
        assert ensemble.members[0].answers.data_ptr() != members[0].answers.data_ptr()
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    if not batched:
        ensemble(input=INPUTS)
        assert ensemble.members[0].answers == 1
    for member in members:
        assert member.training and member.layer.weight.requires_grad and member.answers == 0


@pytest.mark.parametrize("batched", [False, True])
def test_an_ensemble_in_training_mode_answers_as_before(batched):
    members = [tiny_model(seed) for seed in range(3)]
    before = [{key: value.clone() for key, value in member.state_dict().items()} for member in members]
    ensemble = Ensemble([member.train() for member in members], "logits", batched=batched)
    expected = ensemble(input=INPUTS)
    assert ensemble.train() is ensemble and ensemble.training
    torch.testing.assert_close(ensemble(input=INPUTS), expected, rtol=0, atol=0)
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in member.state_dict().items())


def test_what_members_share_counts_once():
    member, other = tiny_model(0), tiny_model(1)
    other[0].weight = member[0].weight
    count = sum(p.numel() for p in nn.ModuleList([member, other]).parameters())
    assert sum(p.numel() for p in Ensemble([member, other, member], "logits").parameters()) == count


def test_members_without_parameters():
    assert torch.equal(simple_ensemble.fuse(None, [nn.Identity(), nn.Flatten()])(input=INPUTS), INPUTS)


def test_members_that_cannot_answer_are_refused():
    broken = tiny_model(1)
    broken[3].bias.data[2] = math.nan
    with pytest.raises(NonFiniteError, match=r"finetuned\[1\] has 1 of 4 values .* under '3\.bias'"):
        simple_ensemble.fuse(None, [tiny_model(), broken])
    with pytest.raises(ParameterError, match=r"finetuned\[0\] has a tensor without numbers under '0\.weight'"):
        max_model_predictor.fuse(None, [tiny_model().to("meta")])
    with pytest.raises(ParameterError, match=r"finetuned\[0\] has a tensor without numbers"):
        max_model_predictor.fuse(None, [nn.LazyLinear(3)])
