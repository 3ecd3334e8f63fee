"""Published adapters of linearised LoRA: merged into weights, they compute what the linearised layers compute."""

import json

import pytest
import torch
from hub_miniatures import clip, l_lora
from safetensors.torch import load, save
from torch.func import functional_call

from fusionlib.core import CheckpointError, FusionError, KeyMismatch, NonFiniteError
from fusionlib.zoo.linearized_adapters import WEIGHTS, is_linearized, merge_linearized
from fusionlib.zoo.own_models import own_backbone


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for name, content in clip().items():
        (folder / name).write_bytes(content)
    return own_backbone(folder)


def adapter(folder, state=None):
    folder.mkdir()
    made = l_lora(1, "openai/clip")
    found = load(made[WEIGHTS])
    made[WEIGHTS] = save(found if state is None else state(found))
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return folder, found


class Lora(torch.nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.A, self.B = torch.nn.Parameter(torch.zeros(2, 8)), torch.nn.Parameter(torch.zeros(8, 2))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias) + 2.0 * x @ self.A.T @ self.B.T


@pytest.mark.parametrize("start", ["zero", "elsewhere"])
def test_each_layer_is_its_own_tangent(base, tmp_path, start):
    moved = {"zero": 0.0, "elsewhere": 1.0}[start]
    change = lambda state: {k: t + moved * ("params0_values.3" in k) for k, t in state.items()}  # noqa: E731
    folder, found = adapter(tmp_path / "adapter", change)
    found = change(found)
    assert is_linearized(folder)
    merged = merge_linearized(base, folder)
    name = "encoder.layers.1.self_attn.v_proj"
    weight, bias = (base.state[f"vision_model.{name}.{kind}"] for kind in ("weight", "bias"))
    layer, long = Lora(weight, bias), f"base_model.model.{name}"
    begin = {"A": found[f"{long}.params0_values.2"], "B": found[f"{long}.params0_values.3"]}
    end = {part: found[f"{long}.model.lora_{part}.default.weight"] for part in "AB"}
    x = torch.randn(5, 8)
    beyond = {part: 2 * begin[part] - end[part] for part in "AB"}
    ordinary, value, other = (functional_call(layer, theta, (x,)) for theta in (end, begin, beyond))
    slope = (ordinary - other) / 2  # exact, as the layer is quadratic along a line
    computed = torch.nn.functional.linear(x, merged[f"vision_model.{name}.weight"], bias)
    torch.testing.assert_close(computed, value + slope, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(computed, ordinary, atol=1e-2)
    kept = [key for key in merged if "q_proj.weight" not in key and "v_proj.weight" not in key]
    assert all(torch.equal(merged[key], base.state[key]) for key in kept)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: {k: t for k, t in s.items() if "params0" not in k}, CheckpointError, "or where they started"),
        (lambda s: {k.replace("layers.1", "layers.7"): t for k, t in s.items()}, KeyMismatch, "missing: .*layers.1"),
        (
            lambda s: {**s, **{k.replace("layers.1", "layers.7"): t.clone() for k, t in s.items()}},
            KeyMismatch,
            "layers.7.*has not. Check",
        ),
        (lambda s: {k: t for k, t in s.items() if "v_proj" not in k}, KeyMismatch, "missing: .*v_proj"),
        (lambda s: {**s, **{k.replace("v_", "k_"): t.clone() for k, t in s.items()}}, KeyMismatch, "unexpected: .*k_p"),
        (lambda s: {k: t for k, t in s.items() if "params0" in k}, CheckpointError, "started, but not its A and B"),
        (lambda s: {}, CheckpointError, "holds no A and B"),
        (lambda s: {k: t * float("nan") for k, t in s.items()}, NonFiniteError, "holds NaN, Inf"),
        (lambda s: {k: t.repeat(2, 1) for k, t in s.items()}, CheckpointError, "says rank 2. They belong"),
        (lambda s: {**s, "bias": torch.zeros(1)}, KeyMismatch, "holds 'bias', which is no part"),
    ],
)
def test_incomplete_and_foreign_adapters(base, tmp_path, change, error, message):
    folder, _ = adapter(tmp_path / "adapter", change)
    with pytest.raises(error, match=message):
        merge_linearized(base, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": "2"},
        {"r": True},
        {"r": None},
        {"lora_alpha": "4"},
        {"lora_alpha": None},
        {"lora_alpha": float("nan")},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"use_dora": True},
    ],
)
def test_settings_that_make_no_sense_are_named(base, tmp_path, changes):
    folder, _ = adapter(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(FusionError, match=f"{next(iter(changes))}|it holds NaN"):
        merge_linearized(base, folder)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="not an adapter's configuration"):
        merge_linearized(base, folder)
