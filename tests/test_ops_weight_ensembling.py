"""The MLP that is merged for every sample: by hand, against a loop over samples, and for every family of models."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import (
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from fusionlib.core import ParameterError
from fusionlib.ops import weight_ensembling
from fusionlib.ops.blocks import mlp_names
from fusionlib.ops.substitutes import substitutes_of, with_substitutes
from fusionlib.ops.weight_ensembling import WeightEnsembledMLP
from fusionlib.testing import assert_same_weights, tiny_transformer

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL_T5 = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": 16}


def random(make):
    """A maker of models of this family whose weights depend on a seed."""

    def model(seed):
        found = make().eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in found.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        return found

    return model


def t5(kind, **more):
    return kind(T5Config(**SMALL_T5, decoder_start_token_id=0, pad_token_id=0, **more))


FAMILIES = {
    "clip": tiny_transformer,
    "gpt2": random(lambda: GPT2Model(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=8, **IDS))),
    "t5": random(lambda: t5(T5EncoderModel)),
    "gated t5": random(lambda: t5(T5EncoderModel, feed_forward_proj="gated-gelu")),
    "llama": random(
        lambda: LlamaModel(
            LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, vocab_size=16)
        )
    ),
}


def ensembled(models, layers=2, init=0.3, spread=30.0):
    """The first MLPs of the models, with a router far from constant."""
    name = mlp_names(models[0])[0]
    mlps = [model.get_submodule(name) for model in models]
    mixed = WeightEnsembledMLP(mlps[0], len(mlps) - 1, layers)
    mixed.fill(mlps[1:])
    generator = torch.Generator().manual_seed(5)
    mixed.draw_router(init, generator, [generator] * (len(mlps) - 1))
    for name, parameter in mixed.router.named_parameters():
        if name.endswith("weight"):
            parameter.data.mul_(spread)
    return mixed.eval(), mlps


def hidden(batch=5, tokens=4, dtype=torch.float32):
    return torch.randn(batch, tokens, 8, generator=torch.Generator().manual_seed(3), dtype=dtype)


def loop(mixed, mlps, inputs):
    """Every sample by itself: route, merge, run."""
    outputs = []
    for sample in inputs:
        weights = mixed.router(sample[None])[0].mean(dim=0)
        merged = {}
        for name, base in mlps[0].named_parameters():
            moves = [w * (dict(mlp.named_parameters())[name] - base) for w, mlp in zip(weights, mlps[1:], strict=True)]
            merged[name] = base + sum(moves)
        outputs.append(functional_call(mlps[0], merged, (sample[None],))[0])
    return torch.stack(outputs)


# The router's only feature is the first one: r_1 = mean of it, r_2 = 1/2. Tokens (1, 0) and (3, 2) have r_1 = 2, so
# the weights are diag(1 + 2 * 1, 1 + 1/2 * 2) = diag(3, 2).
def test_by_hand():
    base, one, two = (nn.Linear(2, 2, bias=False) for _ in range(3))
    for layer, diagonal in ((base, [1.0, 1.0]), (one, [2.0, 1.0]), (two, [1.0, 3.0])):
        layer.weight.data = torch.diag(torch.tensor(diagonal))
    mixed = WeightEnsembledMLP(base, 2, router_layers=1)
    mixed.fill([one, two])
    mixed.router[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    mixed.router[0].bias.data = torch.tensor([0.0, 0.5])
    inputs = torch.tensor([[[1.0, 0.0], [3.0, 2.0]], [[0.0, 1.0], [0.0, 1.0]]])
    torch.testing.assert_close(mixed.routing(inputs), torch.tensor([[2.0, 0.5], [0.0, 0.5]]))
    expected = torch.tensor([[[3.0, 0.0], [9.0, 4.0]], [[0.0, 2.0], [0.0, 2.0]]])
    torch.testing.assert_close(mixed(inputs), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_a_loop_over_samples(family, layers):
    mixed, mlps = ensembled([FAMILIES[family](seed) for seed in range(4)], layers)
    weights = mixed.routing(hidden())
    assert weights.shape == (5, 3) and weights.std(dim=0).min() > 0.01
    torch.testing.assert_close(mixed(hidden()), loop(mixed, mlps, hidden()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [0, 2])
def test_a_constant_router_is_task_arithmetic(layers):
    mixed, mlps = ensembled([tiny_transformer(seed) for seed in range(4)], layers, init=0.4, spread=0.0)
    merged = copy.deepcopy(mlps[0])
    for name, parameter in merged.named_parameters():
        base = parameter.data.clone()
        parameter.data += 0.4 * sum(dict(mlp.named_parameters())[name].data - base for mlp in mlps[1:])
    torch.testing.assert_close(mixed(hidden()), merged(hidden()), rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_the_others():
    mixed, _ = ensembled([tiny_transformer(seed) for seed in range(3)])
    together, inputs = mixed(hidden()), hidden()
    for index in range(len(inputs)):
        torch.testing.assert_close(mixed(inputs[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed(inputs.flip(0)).flip(0), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bound", [1, 2000])
def test_chunks_change_neither_outputs_nor_gradients(monkeypatch, bound):
    mixed, _ = ensembled([tiny_transformer(seed) for seed in range(3)])

    def gradients():
        inputs = hidden().requires_grad_()
        outputs = mixed(inputs)
        found = torch.autograd.grad(outputs.square().sum(), [inputs, *mixed.router.parameters()])
        return outputs.detach(), *found

    whole = gradients()
    monkeypatch.setattr(weight_ensembling, "CPU_WEIGHTS", bound)
    for piece, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(piece, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(mixed(hidden()), whole[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunked", [False, True])
def test_gradient_of_the_router_against_finite_differences(monkeypatch, chunked):
    if chunked:
        monkeypatch.setattr(weight_ensembling, "CPU_WEIGHTS", 1)
    mixed, _ = ensembled([tiny_transformer(seed).double() for seed in range(3)])
    assert all(parameter.dtype == torch.float64 for parameter in mixed.parameters())
    for name in ("router.0.weight", "router.2.weight", "router.2.bias"):
        start = mixed.get_parameter(name).detach().clone().requires_grad_()
        inputs = hidden(3, 2, torch.float64)

        def outputs(value, name=name, inputs=inputs):
            return functional_call(mixed, {name: value}, (inputs,))

        assert torch.autograd.gradcheck(outputs, start)


@pytest.mark.parametrize("family", ["gpt2", "t5", "gated t5", "llama"])
def test_padding_is_left_out(family):
    models = [FAMILIES[family](seed) for seed in range(3)]
    mixed, _ = ensembled(models)
    whole = with_substitutes(models[0], {mlp_names(models[0])[0]: mixed})
    whole = copy.deepcopy(whole)  # a copy sees the mask as well
    ids = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]])
    mask = (ids != 0).long()
    with torch.no_grad():
        padded = whole(input_ids=ids, attention_mask=mask).last_hidden_state[0, :3]
        alone = whole(input_ids=ids[:1, :3], attention_mask=mask[:1, :3]).last_hidden_state[0]
        blind = whole(input_ids=ids).last_hidden_state[0, :3]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(blind, alone, rtol=1e-4, atol=1e-5)
    assert all(part.padding is None for part in substitutes_of(whole).values())


def test_a_decoder_has_a_mask_of_its_own():
    models = [random(lambda: t5(T5ForConditionalGeneration))(seed) for seed in range(3)]
    parts = {}
    for name in mlp_names(models[0]):
        parts[name] = WeightEnsembledMLP(models[0].get_submodule(name), 2, router_layers=1)
    whole = with_substitutes(models[0], parts)
    seen = {}
    for name, part in substitutes_of(whole).items():
        part.register_forward_pre_hook(lambda part, _, name=name: seen.update({name: part.padding}))
    masks = {"attention_mask": torch.ones(1, 3), "decoder_attention_mask": torch.ones(1, 2)}
    whole(input_ids=torch.ones(1, 3).long(), decoder_input_ids=torch.ones(1, 2).long(), **masks)
    assert {(name.split(".")[0], tuple(mask.shape)) for name, mask in seen.items()} == {
        ("encoder", (1, 3)),
        ("decoder", (1, 2)),
    }


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("family", ["clip", "gpt2", "gated t5"])
def test_rebuilt_from_its_structure(family, layers):
    mixed, mlps = ensembled([FAMILIES[family](seed) for seed in range(3)], layers)
    assert mixed.structure() == {"num_tasks": 2, "router_layers": layers}
    again = WeightEnsembledMLP.rebuild(copy.deepcopy(mlps[1]), mixed.structure())
    again.load_state_dict(mixed.state_dict())
    assert_same_weights(again.state_dict(), mixed.state_dict(), rtol=0, atol=0)
    assert torch.equal(again(hidden()), mixed(hidden()))


def test_everything_is_read_and_only_the_router_is_trainable():
    mixed, mlps = ensembled([tiny_transformer(seed) for seed in range(4)])
    mlp = sum(parameter.numel() for parameter in mlps[0].parameters())
    router = 8 * 8 + 8 + 8 * 3 + 3
    assert mixed.num_active() == 4 * mlp + router
    assert sum(p.numel() for p in mixed.parameters() if p.requires_grad) == router
    assert mixed.router[0].bias.abs().max() == 0 and torch.equal(mixed.router[2].bias, torch.full((3,), 0.3))


def test_router_weights_have_the_spread_of_the_paper():
    mixed = WeightEnsembledMLP(nn.Sequential(nn.Linear(200, 4), nn.Linear(4, 200)), 3, router_layers=2)
    mixed.draw_router(0.3, torch.Generator().manual_seed(0), [torch.Generator().manual_seed(t) for t in range(3)])
    assert abs(mixed.router[0].weight.std().item() - 0.01) < 2e-4
    assert not torch.equal(mixed.router[2].weight[0], mixed.router[2].weight[1])


def test_bfloat16_routes_in_float32():
    full, _ = ensembled([tiny_transformer(seed).bfloat16() for seed in range(3)])
    assert full.router[0].weight.dtype == torch.float32 and full.base.fc1.weight.dtype == torch.bfloat16
    outputs = full(hidden().bfloat16())
    assert outputs.dtype == torch.bfloat16 and bool(torch.isfinite(outputs).all())


@pytest.mark.parametrize("bad", [3, -1, True, 1.0, None])
def test_other_depths_are_refused(bad):
    mlp = tiny_transformer().get_submodule(mlp_names(tiny_transformer())[0])
    with pytest.raises(ParameterError, match=r"router_layers = .* must be 0, 1 or 2"):
        WeightEnsembledMLP(mlp, 2, bad)
