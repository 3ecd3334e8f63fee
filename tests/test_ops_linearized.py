"""Linearised modules: exact where the module is linear, finite differences, LoRA to first order, gradients, layers."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fusionlib as fl
from fusionlib.core import KeyMismatch, ParameterError
from fusionlib.ops.linearized import Linearized, linearize_layers, names_with
from fusionlib.ops.modules import Ensemble, predict


class LoRA(nn.Module):
    """W x + s B A x, as an adapter is written."""

    def __init__(self, width: int, rank: int = 2, scale: float = 2.0):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.lora_A = nn.Linear(width, rank, bias=False)
        self.lora_B = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = scale

    def forward(self, x):
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


def adapted(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(LoRA(width), nn.Tanh(), LoRA(width), nn.Linear(width, 3)).double()


def is_lora(name: str) -> bool:
    return "lora_" in name


def moved(module: Linearized, size: float) -> Linearized:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def with_theta(model: nn.Module, theta: dict) -> nn.Module:
    changed = copy.deepcopy(model)
    changed.load_state_dict({**changed.state_dict(), **theta})
    return changed


def test_exact_for_a_linear_module():
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 3), torch.randn(7, 5)
    module = moved(Linearized(linear, ["weight", "bias"]), 1.0)
    torch.testing.assert_close(module(x), with_theta(linear, module.state_dict())(x))


def test_equals_finite_differences():
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    names = names_with(model, is_lora)
    for name in names:  # away from B = 0, so that both factors matter
        model.get_parameter(name).data += 0.3
    module = moved(Linearized(model, names), 0.5)
    start, eps = module.start, 1e-6
    step = {name: value - start[name] for name, value in module.state_dict().items()}
    ahead, behind = (with_theta(model, {n: start[n] + s * eps * step[n] for n in names})(x) for s in (1, -1))
    torch.testing.assert_close(module(x), model(x) + (ahead - behind) / (2 * eps), rtol=1e-7, atol=1e-8)


def test_lora_to_first_order():
    """The distance to the adapter itself shrinks with the square of the step, the step's own effect linearly."""
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    errors, effects = [], []
    for size in (1e-2, 1e-3):
        module = moved(Linearized(model, names_with(model, is_lora)), size)
        lora = with_theta(model, module.state_dict())(x)
        errors.append((module(x) - lora).norm().item())
        effects.append((module(x) - model(x)).norm().item())
    assert 50 < errors[0] / errors[1] < 200
    assert 5 < effects[0] / effects[1] < 20 and errors[1] < 0.1 * effects[1]


def test_state_dict_is_theta_alone_and_what_is_fused_is_linear():
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    module = Linearized(model, names_with(model, is_lora))
    assert list(module.state_dict()) == names_with(model, is_lora) == [n for n, _ in module.named_parameters()]
    pretrained = {name: value.clone() for name, value in module.state_dict().items()}
    thetas = [
        {name: value.clone() for name, value in moved(copy.deepcopy(module), size).state_dict().items()}
        for size in (0.3, -0.2)
    ]
    fused = fl.methods.get("task_arithmetic").fuse(pretrained, thetas, scale=0.5)
    outputs = []
    for state in (pretrained, *thetas, fused):
        module.load_state_dict(state)
        outputs.append(module(x))
    base, one, two, both = outputs
    torch.testing.assert_close(both, base + 0.5 * (one - base) + 0.5 * (two - base))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert module.stored_parameters == total + sum(value.numel() for value in pretrained.values())


def test_theta_can_be_put_in_its_place_from_outside():
    """As ensembles do with stacked weights, and whoever differentiates in a merge's coefficients."""
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    names = names_with(model, is_lora)
    members = [moved(Linearized(model, names), size) for size in (0.3, -0.2)]
    states = [dict(member.named_parameters()) for member in members]
    torch.testing.assert_close(functional_call(members[0], states[1], (x,)), members[1](x))
    expected = torch.stack([member(x) for member in members])
    torch.testing.assert_close(Ensemble(members, "features", batched=True).features({"input": x}), expected)

    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    blended = {name: states[0][name] + weight * (states[1][name] - states[0][name]) for name in names}
    (slope,) = torch.autograd.grad(functional_call(members[0], blended, (x,)).sum(), weight)
    torch.testing.assert_close(slope, (expected[1] - expected[0]).sum())


def test_gradients_are_those_of_the_expansion():
    """The gradient in theta does not depend on theta: it is J transposed times the cotangent, taken at the start."""
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    names = names_with(model, is_lora)
    model(x).sum().backward()
    module = moved(Linearized(model, names), 0.4)
    module(x).sum().backward()
    for name in names:
        torch.testing.assert_close(module.get_parameter(name).grad, model.get_parameter(name).grad)
    assert not any(buffer.requires_grad for buffer in module.buffers())


@pytest.fixture
def clip():
    from peft import LoraConfig

    from fusionlib.zoo.adapters import wrap
    from fusionlib.zoo.backbone import tiny_clip

    torch.manual_seed(0)
    return wrap(tiny_clip().build(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def test_transformers_with_peft_under_inference(clip):
    """Attention, output objects, inference mode and copies."""
    module = Linearized(clip, names_with(clip, is_lora))
    with torch.inference_mode():
        batch = {"pixel_values": torch.randn(3, 3, 32, 32)}
        expected = clip(**batch).image_embeds
        torch.testing.assert_close(predict(module, lambda features, _: features, batch), expected, rtol=1e-4, atol=1e-4)
        changed = moved(copy.deepcopy(module), 0.05)
        assert (changed(**batch) - expected).norm() > 0.01
        torch.testing.assert_close(module(**batch), expected, rtol=1e-4, atol=1e-4)


def test_training_changes_theta_alone(clip):
    module = Linearized(clip, names_with(clip, is_lora)).train()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = module(pixel_values=torch.ones(2, 3, 32, 32)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_layers_by_themselves_are_lora_with_a_fixed_a():
    """From B = 0, a layer linearised in A and B is W + s B A_start, whatever A has become."""
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    parameters = ["lora_A.weight", "lora_B.weight"]
    split = linearize_layers(model, {"0": parameters, "2": parameters})
    folded = copy.deepcopy(model)
    for name in ("0", "2"):
        layer = moved(split.get_submodule(name), 0.3)
        update = 2.0 * layer.state_dict()["lora_B.weight"] @ layer.start["lora_A.weight"]
        folded.get_submodule(name).base.weight.data += update
    torch.testing.assert_close(split(x), folded(x))
    whole = moved(Linearized(model, names_with(model, is_lora)), 0.3)
    assert (split(x) - whole(x)).abs().max() > 1e-3, "between the layers it is not linearised"


def test_start_can_be_given():
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    full = {f"0.{name}": torch.ones_like(model[0].get_parameter(name)) for name in ("lora_A.weight", "lora_B.weight")}
    split = linearize_layers(model, {"0": ["lora_A.weight", "lora_B.weight"]}, full)
    assert torch.equal(split.get_submodule("0").start["lora_B.weight"], full["0.lora_B.weight"])
    assert torch.equal(split.get_submodule("0").state_dict()["lora_B.weight"], model[0].lora_B.weight)
    assert not torch.allclose(split(x), model(x))


def test_errors():
    model = adapted()
    with pytest.raises(ParameterError, match="no parameter to linearise"):
        Linearized(model, [])
    with pytest.raises(ParameterError, match=r"no parameter .0\.lora_C\.weight.\. Did you mean .0\.lora_"):
        Linearized(model, ["0.lora_C.weight"])
    with pytest.raises(ParameterError, match="no submodule '9'"):
        linearize_layers(model, {"9": ["lora_A.weight"]})
    with pytest.raises(KeyMismatch, match=r"differs in 0\.lora_A\.weight"):
        Linearized(model, ["0.lora_A.weight"], {"0.lora_A.weight": torch.zeros(1)})
    with pytest.raises(KeyMismatch, match=r"differs in 0\.lora_A\.weight"):
        Linearized(model, ["0.lora_A.weight"], {})
