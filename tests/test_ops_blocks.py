"""Blocks and MLPs are found in every family of models, and what has none is refused with a reason."""

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from fusionlib.core import ParameterError
from fusionlib.ops.blocks import block_lists, mlp_names, only_block_list
from fusionlib.ops.substitutes import Substitute, substitutes_of, with_substitutes

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {"image_size": 8, "patch_size": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def t5(kind=T5ForConditionalGeneration, **more):
    return kind(T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=16, **more))


def gpt2():
    return GPT2Model(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=8, **IDS))


def clip():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, **IMAGE, projection_dim=4))


FAMILIES = {
    "clip": (clip, "vision_model.encoder.layers", "mlp"),
    "vit": (lambda: ViTModel(ViTConfig(**SMALL, **IMAGE)), "layers", "mlp"),
    "gpt2": (gpt2, "h", "mlp"),
    "t5 encoder": (lambda: t5(T5EncoderModel), "encoder.block", "layer.1.DenseReluDense"),
    "gated t5 encoder": (
        lambda: t5(T5EncoderModel, feed_forward_proj="gated-gelu"),
        "encoder.block",
        "layer.1.DenseReluDense",
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=16)), "model.layers", "mlp"),
    "mistral": (
        lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, vocab_size=16)),
        "model.layers",
        "mlp",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_mlps(family):
    make, where, mlp = FAMILIES[family]
    model = make()
    assert block_lists(model) == {where: [f"{where}.0", f"{where}.1"]}
    name, blocks = only_block_list(model)
    assert name == where and len(blocks) == 2
    assert mlp_names(model) == [f"{where}.0.{mlp}", f"{where}.1.{mlp}"]


def test_encoder_and_decoder_are_two_lists():
    model = t5()
    assert list(block_lists(model)) == ["encoder.block", "decoder.block"]
    assert len(mlp_names(model)) == 4
    with pytest.raises(ParameterError, match=r"2 lists of blocks \('encoder.block' \(2 blocks\), 'decoder"):
        only_block_list(model)


def test_a_resnet_has_stages_and_no_mlp():
    model = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"))
    assert block_lists(model) == {"encoder.stages": ["encoder.stages.0", "encoder.stages.1"]}
    with pytest.raises(ParameterError, match="ResNetModel has no dense MLP"):
        mlp_names(model)


def test_a_sequential_is_a_list_itself():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    assert block_lists(model) == {"": ["0", "1", "2"]}
    with pytest.raises(ParameterError, match="has 0 lists of blocks"):
        only_block_list(model)


class Zero(Substitute):
    def __init__(self):
        super().__init__()
        self.kept = nn.Parameter(torch.zeros(10))

    def forward(self, hidden):
        return torch.zeros_like(hidden)

    def num_active(self):
        return 4


def test_substitutes_stand_in_a_copy():
    model = clip().eval()
    (first, _) = mlp_names(model)
    mixed = with_substitutes(model, {first: Zero()})
    assert substitutes_of(model) == {} and list(substitutes_of(mixed)) == [first]
    stored = sum(p.numel() for p in mixed.parameters())
    assert mixed.active_parameters == stored - 6
    pixels = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(mixed(pixel_values=pixels).image_embeds, model(pixel_values=pixels).image_embeds)
    assert mlp_names(mixed) == mlp_names(model)[1:]
