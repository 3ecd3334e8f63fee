"""A full CLIPModel as the backbone: its vision tower alone is fused, its text tower makes the heads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch
from fusionlib.zoo.task import embedded_task

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """Folder of a miniature CLIP with tokenizer and processor, and the model."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    folder = tmp_path / "clip"
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    text = {
        **SIZES,
        **ends,
        "vocab_size": len(words),
        "max_position_embeddings": 77,
        "pad_token_id": ends["eos_token_id"],
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 16}, projection_dim=12
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 32, "crop_size": 32}))
    return folder, model, tokenizer


def test_vision_tower_and_zero_shot_heads(clip):
    folder, model, tokenizer = clip
    suite = fl.load_suite(folder, ["emoji"], tuning="none", device="cpu")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        embeds = suite.model()(pixel_values=pixels).image_embeds
        words = tokenizer("an emoji of a smiley.", return_tensors="pt")
        whole = model(pixel_values=pixels, **words)
        torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=-1), whole.image_embeds)
        rows = []
        for template in embedded_task("emoji").templates:
            rows.append(
                model(pixel_values=pixels, **tokenizer(template.format("smiley"), return_tensors="pt")).text_embeds
            )
        expected = torch.nn.functional.normalize(torch.cat(rows).mean(0), dim=-1)
    torch.testing.assert_close(suite.heads["emoji"].weight[0], expected)
    assert suite.heads["emoji"].logit_scale == pytest.approx(torch.tensor(3.0).exp().item())
    assert suite.heads["emoji"].weight.shape == (8, 12)
    assert not any("text" in name for name in suite.pretrained)


def test_fine_tunes_may_be_full_clips_too(clip, tmp_path):
    folder, model, _ = clip
    model.vision_model.post_layernorm.bias.data.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    suite = fl.load_suite(str(folder), ["emoji"], checkpoints={"emoji": tmp_path / "tuned"}, device="cpu")
    name = "vision_model.post_layernorm.bias"
    torch.testing.assert_close(suite.finetuned["emoji"][name], suite.pretrained[name] + 1)


def test_missing_tokenizer_and_foreign_text_tower(clip):
    folder, _, _ = clip
    state = load_file(folder / "model.safetensors")
    save_file({**state, "text_model.extra": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(KeyMismatch, match=r"unexpected: text_model.extra"):
        fl.load_suite(folder, ["emoji"], tuning="none", device="cpu")
    save_file(state, folder / "model.safetensors")
    for path in (*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*")):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer for zero-shot heads.*pass heads="):
        fl.load_suite(folder, ["emoji"], tuning="none", device="cpu")
