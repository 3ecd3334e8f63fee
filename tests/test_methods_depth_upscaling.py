"""Depth upscaling: what the new stack is made of, and that the new model saves, loads and generates."""

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

import fusionlib as fl
from fusionlib.core import NonFiniteError, ParameterError
from fusionlib.methods import depth_upscaling
from fusionlib.ops.blocks import only_block_list
from fusionlib.ops.modules import output_tensor
from fusionlib.testing import assert_same_weights

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TOKENS = {"input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}


def clip():
    config = CLIPVisionConfig(**SMALL, image_size=8, patch_size=4, projection_dim=4)
    return CLIPVisionModelWithProjection(config)


def gpt2(**more):
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=4, n_head=2, vocab_size=16, n_positions=32, **IDS, **more))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1, vocab_size=16, **IDS))


def qwen2():
    sliding = {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 2}
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, **sliding, num_key_value_heads=1, vocab_size=16, **IDS))


def t5(kind=T5EncoderModel):
    return kind(T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=4, num_heads=2, vocab_size=16))


FAMILIES = {"clip": (clip, PIXELS), "t5": (t5, TOKENS)} | {m.__name__: (m, TOKENS) for m in (gpt2, llama, qwen2)}


def drawn(make, *given):
    torch.manual_seed(0)
    model = make(*given).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_saves_and_loads(family, tmp_path):
    make, inputs = FAMILIES[family]
    model = drawn(make)
    deeper = depth_upscaling.fuse(model)
    blocks = only_block_list(deeper)[1]
    assert len(blocks) == 6 and deeper.config.num_hidden_layers == 6 and model.config.num_hidden_layers == 4
    fl.save(deeper, tmp_path / "saved")
    again = fl.load(tmp_path / "saved")
    with torch.no_grad():
        expected, found = output_tensor(deeper(**inputs)), output_tensor(again(**inputs))
        assert not torch.allclose(expected, output_tensor(model(**inputs)), atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_generates_with_a_cache(family):
    deeper = depth_upscaling.fuse(drawn(FAMILIES[family][0]), layers=[(0, 3), 2, (1, 4)])
    given = {"attention_mask": torch.ones_like(TOKENS["input_ids"]), "max_new_tokens": 6, "do_sample": False}
    cached, plain = (deeper.generate(**TOKENS, **given, use_cache=use) for use in (True, False))
    assert cached.shape[1] > 4 and torch.equal(cached, plain)


def test_blocks_are_copies_in_the_asked_order():
    model = drawn(clip)
    own = [block.state_dict() for block in only_block_list(model)[1]]
    for layers, order in (
        (None, [0, 1, 2, 1, 2, 3]),
        ([[0, 2], 1, (1, 4), 3], [0, 1, 1, 1, 2, 3, 3]),
        ([3, 0], [3, 0]),
    ):
        blocks = only_block_list(depth_upscaling.fuse(model, layers=layers))[1]
        for block, index in zip(blocks, order, strict=True):
            fl.testing.assert_same_weights(block.state_dict(), own[index], rtol=0, atol=0)
        pointers = [p.data_ptr() for b in (*blocks, *only_block_list(model)[1]) for p in b.parameters()]
        assert len(set(pointers)) == len(pointers), "two blocks share weights"


@pytest.mark.parametrize(("num_blocks", "order"), [(1, [0, 0]), (3, [0, 1, 2] * 2), (5, [0, 1, 2, 3, 1, 2, 3, 4])])
def test_the_default_overlap_is_a_quarter(num_blocks, order):
    stack = nn.ModuleList(nn.Linear(1, 1) for _ in range(num_blocks))
    for index, layer in enumerate(stack):
        nn.init.constant_(layer.weight, index)
    assert [int(layer.weight) for layer in depth_upscaling.fuse(stack)] == order


def test_all_layers_once_is_the_same_model():
    model = drawn(gpt2)
    same = depth_upscaling.fuse(model, layers=[(0, 4)])
    torch.testing.assert_close(same(**TOKENS).logits, model(**TOKENS).logits, rtol=0, atol=0)


def test_a_module_without_configuration():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, enable_nested_tensor=False
    )
    deeper = depth_upscaling.fuse(encoder.eval(), layers=[0, 1, 1])
    assert len(deeper.layers) == deeper.num_layers == 3
    states = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    by_hand = encoder.layers[1](encoder(states))
    torch.testing.assert_close(deeper(states), by_hand)


def test_lists_with_an_entry_per_layer_follow():
    model = drawn(qwen2)
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    deeper = depth_upscaling.fuse(model, layers=[(0, 4), (1, 3)])
    assert deeper.config.layer_types == [model.config.layer_types[i] for i in (0, 1, 2, 3, 1, 2)]
    assert [block.self_attn.layer_idx for block in deeper.model.layers] == list(range(6))


def test_a_block_that_only_its_place_can_hold():
    model = drawn(t5)
    with pytest.raises(ParameterError, match=r"block 0 differs .*relative_attention_bias.*at position 0 of `layers`"):
        depth_upscaling.fuse(model, layers=[(0, 4), (0, 4)])
    with pytest.raises(ParameterError, match="block 0 differs"):
        depth_upscaling.fuse(model, layers=[(1, 4)])
    with pytest.raises(ParameterError, match="scale_attn_by_inverse_layer_idx"):
        depth_upscaling.fuse(gpt2(scale_attn_by_inverse_layer_idx=True))


@pytest.mark.parametrize("layers", [[4], [-1], [(0, 5)], [(2, 2)]])
def test_entries_out_of_range_are_named(layers):
    with pytest.raises(ParameterError, match=r"indices from 0 to 3, and ranges \(start, stop\)"):
        depth_upscaling.fuse(clip(), layers=layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([(0, 1, 2)], r"layers\[0\] = \(0, 1, 2\) is not allowed; it must be a range \(start, stop\)"),
        ([0, "0-2"], r"layers\[1\] = '0-2' is not allowed; it must be an index or a range \(start, stop\)"),
        ([1.0], r"layers\[0\] = 1.0 .* Write 1\."),
        ([True], r"layers\[0\] = True is not allowed"),
        ([[0, None]], r"layers\[0\]\[1\] = None is not allowed; it must be an integer"),
        ("0-3", "it must be a list in which every element is an index or a range"),
        (6, "it must be a list"),
        ([], "names no layer"),
    ],
)
def test_what_is_no_list_of_layers_is_refused(layers, message):
    with pytest.raises(ParameterError, match=message):
        depth_upscaling.fuse(clip(), layers=layers)


def test_layers_as_arrays():
    model = clip()
    by_hand = depth_upscaling.fuse(model, layers=[(0, 2), (1, 3)]).state_dict()
    for layers in (torch.tensor([[0, 2], [1, 3]]), [0, torch.tensor(1), [1, 2], 2]):
        assert_same_weights(depth_upscaling.fuse(model, layers=layers).state_dict(), by_hand, rtol=0, atol=0)


def test_what_has_no_single_stack_is_refused():
    with pytest.raises(ParameterError, match="2 lists of blocks"):
        depth_upscaling.fuse(t5(T5ForConditionalGeneration))
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"))
    with pytest.raises(ParameterError, match=r"does not say how many blocks 'encoder.stages' has"):
        depth_upscaling.fuse(resnet)


def test_non_finite_weights_are_named():
    model = clip()
    with torch.no_grad():
        only_block_list(model)[1][2].mlp.fc1.bias[1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the pretrained model has 1 of 12 values .*layers.2.mlp.fc1.bias"):
        depth_upscaling.fuse(model)
