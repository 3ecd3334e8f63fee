"""The mixture of experts itself: whom it asks, how it weighs answers, what it saves, and what it refuses."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from fusionlib.core import ParameterError
from fusionlib.ops.experts import MixtureOfExperts, router_weight

HIDDEN, EXPERTS = 4, 3


class MLP(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.wi, self.wo = nn.Linear(HIDDEN, 6), nn.Linear(6, HIDDEN)
        self.tokens = []

    def forward(self, hidden):
        self.tokens.append(len(hidden))
        return self.wo(self.wi(hidden).tanh())


def mixture(top_k, dtype=torch.float32):
    experts = [MLP(seed).to(dtype) for seed in range(EXPERTS)]
    router = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(5)).to(dtype)
    return MixtureOfExperts(experts, router, top_k).eval()


def tokens(*shape, dtype=torch.float32):
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(6)).to(dtype)


def by_hand(moe, hidden):
    answers = []
    for token in hidden.reshape(-1, HIDDEN):
        scores = moe.router.weight @ token
        chosen = sorted(range(EXPERTS), key=lambda i: float(scores[i]), reverse=True)[: moe.top_k]
        gates = torch.stack([scores[i].exp() for i in chosen])
        gates = gates / gates.sum()
        answers.append(sum(g * moe.experts[i](token[None])[0] for g, i in zip(gates, chosen, strict=True)))
    return torch.stack(answers).reshape(hidden.shape)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (0,)])
def test_answers_by_hand(top_k, shape):
    moe, hidden = mixture(top_k), tokens(*shape)
    with torch.no_grad():
        answer = moe(hidden)
        assert answer.shape == hidden.shape
        if hidden.numel():
            torch.testing.assert_close(answer, by_hand(moe, hidden))


def test_two_experts_worked_out():
    double, triple = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, factor in ((double, 2.0), (triple, 3.0)):
        nn.init.constant_(layer.weight, factor)
        nn.init.zeros_(layer.bias)
    moe = MixtureOfExperts([double, triple], torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]]), top_k=2)
    # scores 0 and log 3, gates 1/4 and 3/4: 2/4 + 9/4
    assert moe(torch.ones(1, 1)).item() == pytest.approx(2.75)
    first = MixtureOfExperts([double, triple], torch.tensor([[0.0], [1.0]]), top_k=1)
    assert first(torch.tensor([[1.0], [-1.0]])).flatten().tolist() == pytest.approx([3.0, -2.0])


def test_only_the_chosen_are_computed():
    moe = mixture(top_k=1)
    moe(tokens(50))
    counts = [expert.tokens[-1] for expert in moe.experts]
    assert sum(counts) == 50 and max(counts) < 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    moe, hidden = mixture(2, dtype), tokens(2, 5, dtype=dtype)
    with torch.no_grad():
        answer = moe(hidden)
    wide = copy.deepcopy(moe).double()
    wide.router.weight.data = moe.router.weight.double()
    with torch.no_grad():
        expected = wide(hidden.double()).to(dtype)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer, expected, rtol=0.02, atol=0.02)


def test_under_autocast():
    moe, hidden = mixture(2), tokens(2, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(moe(hidden), moe.float()(hidden), rtol=0.02, atol=0.02)


def test_gradients_reach_router_and_experts():
    moe = mixture(2)
    moe(tokens(20)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moe.parameters())
    alone = mixture(1)
    alone(tokens(20)).square().sum().backward()
    assert alone.router.weight.grad.abs().max() == 0, "with one gate, which is always 1, the router cannot learn"


def test_experts_are_copies():
    mlp = MLP(0)
    moe = MixtureOfExperts([mlp, mlp], torch.zeros(2, HIDDEN), top_k=2)
    nn.init.zeros_(moe.experts[0].wi.weight)
    assert mlp.wi.weight.abs().sum() > 0 and moe.experts[1].wi.weight.abs().sum() > 0


def test_structure_rebuilds():
    moe = mixture(2)
    structure = json.loads(json.dumps(moe.structure()))
    assert structure == {"num_experts": EXPERTS, "top_k": 2, "hidden_size": HIDDEN}
    again = MixtureOfExperts.rebuild(MLP(9), structure)
    again.load_state_dict(moe.state_dict())
    torch.testing.assert_close(again(tokens(7)), moe(tokens(7)), rtol=0, atol=0)
    half = MixtureOfExperts.rebuild(MLP(9).bfloat16(), structure)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_active_parameters():
    one = sum(p.numel() for p in MLP(0).parameters())
    assert mixture(2).num_active() == EXPERTS * HIDDEN + 2 * one


def test_router_depends_on_seed_and_name_alone():
    torch.manual_seed(1)
    first = router_weight(MLP(0), "a.mlp", EXPERTS, 0.02, 0)
    torch.manual_seed(2)
    assert torch.equal(router_weight(MLP(1), "a.mlp", EXPERTS, 0.02, 0), first)
    assert not torch.equal(router_weight(MLP(0), "b.mlp", EXPERTS, 0.02, 0), first)
    assert not torch.equal(router_weight(MLP(0), "a.mlp", EXPERTS, 0.02, 1), first)
    torch.testing.assert_close(router_weight(MLP(0), "a.mlp", EXPERTS, 0.04, 0), 2 * first)
    wide = router_weight(MLP(0), "a.mlp", 5000, 0.02, 0)
    assert wide.std().item() == pytest.approx(0.02, rel=0.05) and abs(wide.mean().item()) < 1e-3
    half = router_weight(MLP(0).half(), "a.mlp", EXPERTS, 0.02, 0)
    assert half.dtype == torch.float16 and torch.equal(half, first.half())


def test_width_of_a_transposed_layer():
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    gpt2 = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8, **ids))
    assert router_weight(gpt2.h[0].mlp, "h.0.mlp", EXPERTS, 0.02, 0).shape == (EXPERTS, 8)


@pytest.mark.parametrize(
    ("top_k", "message"),
    [
        (0, "top_k = 0 is not allowed; it must be an integer, 1 or greater"),
        (True, "top_k = True"),
        (1.0, "top_k = 1.0"),
        (4, "top_k = 4 is more than the 3 experts there are; use 3 or fewer"),
    ],
)
def test_bad_top_k(top_k, message):
    with pytest.raises(ParameterError, match=message):
        mixture(top_k)


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_bad_spread(std):
    with pytest.raises(ParameterError, match="router_std = "):
        router_weight(MLP(0), "mlp", EXPERTS, std, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_agrees_on_the_gpu():
    moe, hidden = mixture(2), tokens(2, 50)
    with torch.no_grad():
        expected = moe(hidden)
        torch.testing.assert_close(moe.cuda()(hidden.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)
