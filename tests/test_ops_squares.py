"""Sums of squared per-example gradients: the quick way against a backward pass for each example."""

import pytest
import torch
from torch import nn

from fusionlib.ops.modules import output_tensor
from fusionlib.ops.squares import all_at_once, held_per_example, one_by_one
from fusionlib.testing import assert_same_weights, tiny_model
from fusionlib.testing.tiny import tiny_transformer


def score(model, batch, direction):
    output = output_tensor(model(**batch))
    return (output.flatten(1)[0, : len(direction)].tanh() * direction).sum()


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def check(model, batch, *, held=None):
    count = len(next(iter(batch.values())))
    directions = random(count, 3)
    slow = one_by_one(model, score, batch, directions)
    with torch.no_grad():
        quick = all_at_once(model, score, batch, directions)
    assert quick.keys() == slow.keys() == dict(model.named_parameters()).keys()
    assert_same_weights({name: quick[name] for name in slow}, slow, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules()), "a hook was left behind"
    assert held is None or held_per_example(model) == 4 * held
    return slow


def test_by_hand():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0]]))
    # two tokens per example: the gradient is their sum, squared it is (1 + 2)^2 and 1, then (0 - 2)^2 and 9
    batch = {"input": torch.tensor([[[1.0, 1.0], [2.0, 0.0]], [[0.0, 3.0], [-2.0, 0.0]]])}
    found = all_at_once(model, lambda model, batch, direction: model(**batch).sum(), batch, torch.ones(2, 1))
    assert found["weight"].tolist() == [[13.0, 10.0]]


def test_layers_without_tokens():
    check(tiny_model(1), {"input": random(5, 3)}, held=5 + 5 + 5 + 4)


def test_a_vision_tower():
    model = tiny_transformer(1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # a frozen parameter has a Fisher information like any other
    slow = check(model, {"pixel_values": random(4, 3, 8, 8)})
    assert held_per_example(model) < sum(value.numel() * 4 for value in slow.values()) / 2


def test_conv1d_and_padding():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=6, attn_implementation="eager")
    tokens, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    check(GPT2Model(config).eval(), {"input_ids": tokens, "attention_mask": mask})


class Twice(nn.Module):
    """One layer is called twice, one weight is used by two layers, and one never through its layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.first, self.second, self.direct = (nn.Linear(3, 3) for _ in range(4))
        self.second.weight = self.first.weight

    def forward(self, input):
        hidden = self.layer(self.layer(input).tanh())
        return self.second(self.first(hidden).tanh()) @ self.direct.weight


def test_layers_that_are_called_twice_tied_or_not_called():
    torch.manual_seed(1)
    slow = check(Twice().eval(), {"input": random(4, 2, 3)})
    assert not slow["direct.bias"].any() and slow["direct.weight"].all()


def test_pytorch_attention_that_bypasses_its_layers():
    torch.manual_seed(2)
    check(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), {"src": random(3, 4, 8)})


def test_a_model_that_looks_at_values_says_so():
    class Branching(nn.Linear):
        def forward(self, input):
            return super().forward(input) if bool(input.sum() > 0) else -super().forward(input)

    model = Branching(2, 3).eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match="vmap"):
        all_at_once(model, score, {"input": random(2, 2)}, random(2, 3))
    assert not model._forward_hooks
