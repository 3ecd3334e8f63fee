"""A user's own CLIP: adapters of both towers, and configurations of no vision tower."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch
from fusionlib.testing import assert_same_weights

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}
DIM = 12


@pytest.fixture
def base(tmp_path, monkeypatch):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=DIM)).save_pretrained(tmp_path / "base")
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path / "base"


def load(base, folder):
    heads = {"emoji": torch.ones(8, DIM)}
    return fl.load_suite(base, ["emoji"], checkpoints={"emoji": folder}, heads=heads, device="cpu")


def test_an_adapter_of_both_towers_gives_its_part_of_the_vision_tower(base, tmp_path, caplog):
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPConfig, CLIPModel

    text = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIM))
    whole.load_state_dict({**whole.state_dict(), **load_file(base / "model.safetensors")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = get_peft_model(copy.deepcopy(whole), config)
        adapted.save_pretrained(tmp_path / "both")
    with caplog.at_level("INFO", logger="fusionlib"):
        found = load(base, tmp_path / "both").finetuned["emoji"]
    merged = adapted.merge_and_unload().state_dict()
    assert_same_weights(found, {name: merged[name] for name in found}, rtol=1e-6, atol=1e-6)
    assert "8 tensors are left out" in caplog.text and "has no text_model" in caplog.text
    state = load_file(tmp_path / "both" / "adapter_model.safetensors")
    texts = {name: tensor for name, tensor in state.items() if "text_model" in name}
    save_file(texts, tmp_path / "both" / "adapter_model.safetensors")
    with pytest.raises((KeyMismatch, CheckpointError), match=r"both (changes nothing of|does not fit)"):
        load(base, tmp_path / "both")


def test_configurations_of_no_vision_tower_are_named(base, tmp_path):
    path = base / "config.json"
    for facts in ({"model_type": "clip", "vision_config": 3}, {"model_type": "clip"}):
        path.write_text(json.dumps(facts))
        with pytest.raises(CheckpointError, match=r"config.json describes no vision tower"):
            load(base, base)
