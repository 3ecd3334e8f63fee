"""MoE upscaling and merging over the families of transformers: equal answers, the experts' origin, and Mixtral."""

import math

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError
from fusionlib.methods import moe_merging, moe_upscaling
from fusionlib.ops.modules import output_tensor
from fusionlib.ops.substitutes import substitutes_of
from fusionlib.testing import assert_same_weights

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {"image_size": 8, "patch_size": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def t5(**more):
    return T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=16, **more)
    )


def llama(kind=LlamaForCausalLM, **more):
    return kind(LlamaConfig(**SMALL, vocab_size=16, num_key_value_heads=1, **more))


def mistral(**more):
    return MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, vocab_size=16, **more))


FAMILIES = {
    "clip": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, **IMAGE, projection_dim=4)),
    "vit": lambda: ViTModel(ViTConfig(**SMALL, **IMAGE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=8, **IDS)),
    "t5": t5,
    "gated t5": lambda: t5(feed_forward_proj="gated-gelu"),
    "llama without head": lambda: llama(LlamaModel),
    "llama": llama,
    "mistral": mistral,
}


def made(family, seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family]() if isinstance(family, str) else family()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


@torch.no_grad()
def answer(model):
    if hasattr(model.config, "image_size"):
        pixels = torch.linspace(-1, 1, 384, dtype=model.dtype, device=model.device).reshape(2, 3, 8, 8)
        return output_tensor(model(pixel_values=pixels))
    words = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 3, 4]], device=model.device)
    more = {"decoder_input_ids": words.flip(1)} if model.config.is_encoder_decoder else {}
    return output_tensor(model(input_ids=words, **more))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", [{}, {"num_experts": 3, "top_k": 3}, {"num_experts": 1, "top_k": 1}], ids=str)
def test_identical_experts_answer_as_the_dense_model(family, given):
    dense = made(family)
    mixed = moe_upscaling.fuse(dense, [], router_std=1.0, **given)
    torch.testing.assert_close(answer(mixed), answer(dense), rtol=1e-4, atol=1e-4)
    assert not mixed.training and (type(mixed) is type(dense) or isinstance(mixed, MixtralForCausalLM))


@pytest.mark.parametrize("family", ["clip", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family, dtype):
    dense = made(family, dtype=dtype)
    mixed = moe_upscaling.fuse(dense)
    assert {parameter.dtype for parameter in mixed.parameters()} == {dtype}
    torch.testing.assert_close(answer(mixed), answer(dense), rtol=0.1, atol=0.1)


def test_stored_and_active_parameters():
    for family in ("clip", "llama"):
        dense = made(family)
        mixed = moe_upscaling.fuse(dense, num_experts=4, top_k=2)
        size = sum(p.numel() for p in dense.parameters())
        mlps = sum(p.numel() for n, p in dense.named_parameters() if ".mlp." in n)
        routers = 2 * 4 * 8
        assert sum(p.numel() for p in mixed.parameters()) == size + 3 * mlps + routers
        assert mixed.active_parameters == size + mlps + routers


def merged_by_hand(members, chosen):
    """The pretrained clip with the MLPs of one member."""
    model = made("clip")
    parts = {k: v for k, v in members[chosen].state_dict().items() if ".mlp." in k}
    model.load_state_dict({**model.state_dict(), **parts})
    return model


def test_each_expert_is_the_mlp_of_one_model():
    base, members = made("clip"), [made("clip", seed) for seed in (1, 2, 3)]
    mixed = moe_merging.fuse(base, members, top_k=1)
    for chosen in range(3):
        for moe in substitutes_of(mixed).values():
            moe.experts = torch.nn.ModuleList([moe.experts[chosen]] * 3)
        torch.testing.assert_close(answer(mixed), answer(merged_by_hand(members, chosen)))
        mixed = moe_merging.fuse(base, members, top_k=1)


def test_rest_is_pretrained_or_the_average():
    base, members = made("clip"), [made("clip", 1), made("clip", 2)]
    key = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    states = [model.state_dict() for model in (base, *members)]
    assert torch.equal(moe_merging.fuse(base, members).state_dict()[key], states[0][key])
    average = moe_merging.fuse(base, members, rest="average").state_dict()
    torch.testing.assert_close(average[key], (states[1][key] + states[2][key]) / 2)
    expert = "vision_model.encoder.layers.0.mlp.experts.1.fc1.weight"
    assert torch.equal(average[expert], states[2][expert.replace("experts.1.", "")])


@pytest.mark.parametrize("family", ["clip", "gpt2", "gated t5", "mistral"])
def test_copies_of_one_model_answer_as_it(family):
    only = made(family, 1)
    mixed = moe_merging.fuse(made(family), [only] * 3, rest="average", top_k=2, router_std=1.0)
    torch.testing.assert_close(answer(mixed), answer(only), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_mixtral_answers_as_its_own_mixture(family, tmp_path):
    base, members = made(family), [made(family, seed) for seed in (1, 2, 3)]
    mixed = moe_merging.fuse(base, members, top_k=2, router_std=1.0)
    assert type(mixed) is MixtralForCausalLM
    generic = moe_merging.fuse(base.model, [member.model for member in members], top_k=2, router_std=1.0)
    # the name of an MLP is part of its router's seed, and the bare model lacks the prefix
    for name, moe in substitutes_of(generic).items():
        moe.router.weight.data.copy_(mixed.get_parameter(f"model.{name}.gate.weight"))
    with torch.no_grad():
        expected = base.lm_head(answer(generic))
    torch.testing.assert_close(answer(mixed), expected, rtol=1e-4, atol=1e-4)
    mixed.save_pretrained(tmp_path / "saved")
    again = MixtralForCausalLM.from_pretrained(tmp_path / "saved", local_files_only=True).eval()
    assert_same_weights(again.state_dict(), mixed.state_dict(), rtol=0, atol=0)
    assert torch.equal(answer(again), answer(mixed))


def test_mixtral_keeps_the_configuration():
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    more = {"rope_parameters": rope, "head_dim": 6, "max_position_embeddings": 77, "rms_norm_eps": 1e-3}
    dense = made(lambda: mistral(**more, sliding_window=2, tie_word_embeddings=True, hidden_act="gelu", **IDS))
    dense.generation_config.temperature = 0.5
    mixed = moe_upscaling.fuse(dense, num_experts=5, top_k=3)
    torch.testing.assert_close(answer(mixed), answer(dense), rtol=1e-4, atol=1e-4)
    assert mixed.lm_head.weight is mixed.model.embed_tokens.weight
    assert (mixed.config.num_local_experts, mixed.config.num_experts_per_tok) == (5, 3)
    for name in ("sliding_window", "rope_parameters", "head_dim", "max_position_embeddings", "pad_token_id"):
        assert getattr(mixed.config, name) == getattr(dense.config, name), name
    assert mixed.generation_config.temperature == 0.5
    assert moe_upscaling.fuse(made("llama")).config.sliding_window is None


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_have_no_place_in_mixtral(bias):
    with pytest.raises(ParameterError, match=r"for which Mixtral has no place: model.layers.0.*_proj.bias"):
        moe_upscaling.fuse(made(lambda: llama(**{bias: True})))


def test_no_random_number_is_drawn():
    for family in ("clip", "llama"):
        before = torch.random.get_rng_state()
        dense = made(family)
        moe_upscaling.fuse(dense)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds():
    dense = made("clip")
    first, same, other = (moe_upscaling.fuse(dense, seed=seed).state_dict() for seed in (0, 0, 1))
    assert_same_weights(first, same, rtol=0, atol=0)
    routers = [key for key in first if "router" in key]
    assert len(routers) == 2 and not torch.equal(first[routers[0]], first[routers[1]])
    assert all(torch.equal(first[key], other[key]) == ("router" not in key) for key in first)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_experts": 0}, "num_experts = 0 is not allowed; it must be an integer, 1 or greater"),
        ({"num_experts": 2.0}, "num_experts = 2.0"),
        ({"num_experts": 2, "top_k": 3}, "top_k = 3 is more than the 2 experts"),
        ({"router_std": -1.0}, "router_std = -1.0 is out of range"),
        ({"router_std": math.nan}, "router_std = nan is not a finite"),
        ({"seed": -1}, "seed = -1 is not allowed; it must be an integer, 0 or greater"),
    ],
)
def test_bad_hyperparameters(given, message):
    with pytest.raises(ParameterError, match=message):
        moe_upscaling.fuse(made("clip"), **given)


def test_models_that_do_not_fit():
    base, member = made("clip"), made("clip", 1)
    with pytest.raises(ParameterError, match="`finetuned` is empty"):
        moe_merging.fuse(base, [])
    with pytest.raises(ParameterError, match="top_k = 2 is more than the 1 experts"):
        moe_merging.fuse(base, [member])
    with pytest.raises(ParameterError, match="rest = 'finetuned' is not known"):
        moe_merging.fuse(base, [member, member], rest="finetuned")
    with pytest.raises(KeyMismatch, match=r"finetuned\[1\] lacks"):
        moe_merging.fuse(base, [member, made("vit")])
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"))
    with pytest.raises(ParameterError, match="ResNetModel has no dense MLP"):
        moe_upscaling.fuse(resnet)
    with torch.no_grad():
        member.visual_projection.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"finetuned\[1\] has 1 of 32 values"):
        moe_merging.fuse(base, [base, member])
    with pytest.raises(NonFiniteError, match="the pretrained model has 1 of 32 values"):
        moe_upscaling.fuse(member)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["clip", "llama"])
def test_on_the_gpu(family):
    dense = made(family).cuda()
    mixed = moe_upscaling.fuse(dense)
    assert {parameter.device.type for parameter in mixed.parameters()} == {"cuda"}
    torch.testing.assert_close(answer(mixed), answer(dense), rtol=1e-3, atol=1e-3)
