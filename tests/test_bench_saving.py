"""Fused models are written whole or not at all, and come back with the same answers."""

import json

import pytest
import torch
from bench_helpers import make_record
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.bench import saving
from fusionlib.core import CheckpointError, ParameterError
from fusionlib.methods import simple_average, simple_ensemble
from fusionlib.ops import substitutes
from fusionlib.ops.blocks import mlp_names
from fusionlib.ops.modules import Ensemble
from fusionlib.ops.substitutes import Substitute, with_substitutes
from fusionlib.testing import assert_same_weights, tiny_model, tiny_transformer

PICTURES = torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)


def answer(model):
    with torch.no_grad():
        found = model(pixel_values=PICTURES)
    return found if isinstance(found, torch.Tensor) else found.image_embeds


def test_a_single_model(tmp_path):
    model = tiny_transformer(1)
    model.load_state_dict(simple_average.fuse(model.state_dict(), [tiny_transformer(2).state_dict()]))
    again = fl.load(fl.save(model, tmp_path / "fused"))
    assert_same_weights(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not again.training
    names = {path.name for path in (tmp_path / "fused").iterdir()}
    assert names == {"config.json", "model.safetensors", "structure.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["fused"], "nothing is left beside it"


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("average", ["logits", "probabilities", "features"])
def test_an_ensemble(tmp_path, average, batched):
    members = [tiny_transformer(seed) for seed in (1, 2, 3)]
    model = Ensemble(members, average, weights=[0.5, 0.3, 0.2], batched=batched)
    again = fl.load(fl.save(model, tmp_path / "fused"))
    assert again.average == average and again.weights.tolist() == model.weights.tolist()
    torch.testing.assert_close(answer(again), answer(model), rtol=1e-5, atol=1e-6)


def test_every_kind_of_ensemble_comes_back_as_what_it_was(tmp_path):
    for cls in Ensemble.__subclasses__():
        model = cls([tiny_transformer(1), tiny_transformer(2)], center=True)
        again = fl.load(fl.save(model, tmp_path / cls.__name__))
        assert type(again) is cls
        torch.testing.assert_close(answer(again), answer(model))


class Shifted(Substitute):
    """Stands for any substitute: the module it replaces, and a shift that is learned."""

    def __init__(self, inner, width):
        super().__init__()
        self.inner, self.shift = inner, torch.nn.Parameter(torch.zeros(width))

    def forward(self, hidden):
        return self.inner(hidden) + self.shift

    def structure(self):
        return {"width": len(self.shift)}

    @classmethod
    def rebuild(cls, original, structure):
        return cls(original, structure["width"])


def mixed(dtype=torch.float32):
    model = tiny_transformer(1).to(dtype)
    parts = {name: Shifted(model.get_submodule(name), 8) for name in mlp_names(model)[1:]}
    with torch.no_grad():
        for index, part in enumerate(parts.values()):
            part.shift += 1 + index
    return with_substitutes(model, parts).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixed_model(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(substitutes, "Shifted", Shifted, raising=False)
    monkeypatch.setattr(Shifted, "__module__", "fusionlib.ops.substitutes")
    model = mixed(dtype)
    state = torch.get_rng_state()
    again = fl.load(fl.save(model, tmp_path / "fused"))
    assert torch.equal(torch.get_rng_state(), state), "loading drew random numbers"
    assert_same_weights(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.active_parameters == model.active_parameters and not again.training
    if dtype == torch.float32:
        assert torch.equal(answer(again), answer(model))


def test_a_mixed_model_of_unknown_parts(tmp_path):
    folder = fl.save(mixed(), tmp_path / "fused")
    with pytest.raises(CheckpointError, match="needs 'Shifted' of 'test_bench_saving', which this version"):
        fl.load(folder)


def test_weights_that_are_missing(tmp_path):
    folder = fl.save(tiny_transformer(), tmp_path / "fused")
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if "fc1" in key)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys .*fc1"):
        fl.load(folder)


def test_the_card_states_method_and_numbers(tmp_path):
    record = make_record("task_arithmetic", {"a": (3, 4), "b": (1, 4)}, selected_on="val")
    text = (fl.save(tiny_transformer(), tmp_path / "fused", record=record) / "README.md").read_text()
    assert '`task_arithmetic` {"scale": 0.3}' in text and "selected on: val" in text
    assert "| a | 0.7500 | 3 | 4 |" in text and "| average | 0.5000 |" in text


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "fused").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        fl.save(tiny_transformer(), tmp_path / "fused")


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(saving, "_write_structure", full)
    with pytest.raises(OSError, match="disk full"):
        fl.save(simple_ensemble.fuse(tiny_transformer(), [tiny_transformer(1)]), tmp_path / "fused")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ParameterError, match="a Sequential cannot be saved"):
        fl.save(tiny_model(), tmp_path / "fused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mystery"}, "kind 'mystery'"),
        ({"format": 99}, "format 99"),
        ({"architecture": "os"}, "no model called 'os'"),
        ({"architecture": "PreTrainedTokenizer"}, "no model called 'PreTrainedTokenizer'"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, change, message):
    folder = fl.save(tiny_transformer(), tmp_path / "fused")
    path = folder / "structure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        fl.load(folder)


def test_a_damaged_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no structure\.json"):
        fl.load(tmp_path)
    folder = fl.save(tiny_transformer(), tmp_path / "fused")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fl.load(folder)
    (folder / "structure.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fl.load(folder)
