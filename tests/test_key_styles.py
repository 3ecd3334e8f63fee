"""Published styles of keys, as miniatures: a merge equals what from_pretrained reads of each model, averaged."""

import functools
import json
import re

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import KeyMismatch

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PICTURE = {**WIDE, "image_size": 8, "patch_size": 4}
TEXT = {**WIDE, "vocab_size": 50, "max_position_embeddings": 16}
GPT2 = t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
BERT = t.BertConfig(**TEXT)
ROBERTA = t.RobertaConfig(**TEXT)
LLAMA = t.LlamaConfig(**TEXT, num_key_value_heads=1)
TIED_LLAMA = t.LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=True)
QWEN2 = t.Qwen2Config(**TEXT, num_key_value_heads=1, tie_word_embeddings=True)
T5 = t.T5Config(d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, vocab_size=50)
CLIP_VISION = t.CLIPVisionConfig(**PICTURE, projection_dim=8)
CLIP = t.CLIPConfig(vision_config=PICTURE, text_config=TEXT, projection_dim=8)
MIXTRAL = t.MixtralConfig(**TEXT, num_key_value_heads=1, num_local_experts=3)
DISTIL = t.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=50, max_position_embeddings=16)
SPEECH = t.Wav2Vec2Config(
    **WIDE,
    conv_dim=(8,),
    conv_stride=(2,),
    conv_kernel=(3,),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)


# Each style turns the tensors that save_pretrained writes today, and the model, into those of a published file.


def today(state, model):
    return state


def whole(state, model):
    """Every name of the module, second names of tied tensors too, as torch.save(model.state_dict()) has them."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def without(prefix):
    return lambda state, model: {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def below(prefix):
    return lambda state, model: {prefix + name: tensor for name, tensor in state.items()}


def renamed(*pairs):
    def style(state, model):
        for old, new in pairs:
            state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
        return state

    return style


def besides(**constants):
    """With constants; a name with a number in braces is there for both layers."""

    def style(state, model):
        names = {name.format(layer): value for name, value in constants.items() for layer in (0, 1)}
        return {**state, **names}

    return style


def both(*styles):
    return lambda state, model: functools.reduce(lambda found, style: style(found, model), styles, state)


MASK = torch.tril(torch.ones(1, 1, 16, 16))
OLD_GPT2 = both(
    without("transformer."),
    besides(**{"h.{}.attn.bias": MASK, "h.{}.attn.masked_bias": torch.tensor(-1e4)}),
)
BYTE_GPT2 = besides(**{"transformer.h.{}.attn.bias": MASK.byte()})
GAMMA = renamed((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))
IDS = torch.arange(16)[None]
FREQUENCIES = besides(**{"model.layers.{}.self_attn.rotary_emb.inv_freq": torch.ones(4) / 3})
VISION_IDS = besides(**{"vision_model.embeddings.position_ids": torch.arange(5)[None]})
NORM = renamed(
    (r"parametrizations\.weight\.original0", "weight_g"), (r"parametrizations\.weight\.original1", "weight_v")
)

# class, configuration, style of the pretrained model, styles of the two fine-tunes
STYLES = {
    "gpt2 as published, fine-tunes of today": (t.GPT2LMHeadModel, GPT2, OLD_GPT2, today, today),
    "gpt2 of today, fine-tunes as published": (t.GPT2LMHeadModel, GPT2, today, OLD_GPT2, BYTE_GPT2),
    "gpt2 with masks as bytes": (t.GPT2LMHeadModel, GPT2, BYTE_GPT2, BYTE_GPT2, BYTE_GPT2),
    "gpt2, head stored beside the embedding": (t.GPT2LMHeadModel, GPT2, OLD_GPT2, whole, today),
    "gpt2 whole as the pretrained one": (t.GPT2LMHeadModel, GPT2, whole, today, OLD_GPT2),
    "gpt2 in parallel and compiled": (
        t.GPT2LMHeadModel,
        GPT2,
        today,
        below("module._orig_mod."),
        below("_orig_mod.module."),
    ),
    "bare gpt2 below a prefix": (t.GPT2Model, GPT2, today, below("transformer."), below("model.transformer.")),
    "bert as published": (t.BertForMaskedLM, BERT, GAMMA, today, whole),
    "bert, old fine-tunes": (
        t.BertForMaskedLM,
        BERT,
        today,
        both(GAMMA, besides(**{"bert.embeddings.position_ids": IDS})),
        both(whole, besides(**{"bert.embeddings.position_ids": IDS, "bert.embeddings.token_type_ids": IDS * 0})),
    ),
    "bare bert": (t.BertModel, BERT, both(GAMMA, below("bert.")), today, below("bert.")),
    "bert in a module of the user's own": (t.BertForMaskedLM, BERT, today, below("net."), below("module.student.")),
    "roberta": (
        t.RobertaForMaskedLM,
        ROBERTA,
        both(whole, besides(**{"roberta.embeddings.position_ids": IDS})),
        today,
        whole,
    ),
    "bare roberta": (t.RobertaModel, ROBERTA, below("roberta."), today, below("module.roberta.")),
    "distilbert": (t.DistilBertForMaskedLM, DISTIL, whole, today, below("module.")),
    "llama with frequencies": (t.LlamaForCausalLM, LLAMA, FREQUENCIES, today, below("model.")),
    "llama, fine-tunes with frequencies": (
        t.LlamaForCausalLM,
        LLAMA,
        today,
        FREQUENCIES,
        both(FREQUENCIES, below("module.")),
    ),
    "tied llama": (t.LlamaForCausalLM, TIED_LLAMA, today, whole, both(whole, below("_orig_mod."))),
    "tied llama, whole as the pretrained one": (t.LlamaForCausalLM, TIED_LLAMA, whole, today, whole),
    "tied llama, only the head's name": (
        t.LlamaForCausalLM,
        TIED_LLAMA,
        today,
        renamed((r"model\.embed_tokens\.weight", "lm_head.weight")),
        today,
    ),
    "qwen2": (t.Qwen2ForCausalLM, QWEN2, whole, today, FREQUENCIES),
    "t5, four names of one tensor": (t.T5ForConditionalGeneration, T5, whole, today, whole),
    "t5 of today": (t.T5ForConditionalGeneration, T5, today, whole, below("module.")),
    "t5 by the encoder's name": (
        t.T5ForConditionalGeneration,
        T5,
        today,
        renamed((r"shared\.weight", "encoder.embed_tokens.weight")),
        renamed((r"shared\.weight", "decoder.embed_tokens.weight")),
    ),
    "t5's encoder": (t.T5EncoderModel, T5, whole, today, besides(**{"decoder.block.{}.x.weight": torch.ones(2)})),
    "clip": (
        t.CLIPModel,
        CLIP,
        both(VISION_IDS, besides(**{"text_model.embeddings.position_ids": IDS})),
        today,
        below("module."),
    ),
    "clip's vision tower": (t.CLIPVisionModelWithProjection, CLIP_VISION, VISION_IDS, today, below("_orig_mod.")),
    "clip's bare tower": (t.CLIPVisionModel, CLIP_VISION, today, below("vision_model."), whole),
    "vit of the first years": (t.ViTForImageClassification, t.ViTConfig(**PICTURE), today, whole, below("module.")),
    "vit of today": (t.ViTModel, t.ViTConfig(**PICTURE), whole, today, below("vit.")),
    "mixtral, experts apart": (t.MixtralForCausalLM, MIXTRAL, today, today, below("module.")),
    "mixtral, experts together in some": (t.MixtralForCausalLM, MIXTRAL, today, whole, today),
    "mixtral, experts together": (t.MixtralForCausalLM, MIXTRAL, whole, whole, today),
    "wav2vec2 before parametrizations": (t.Wav2Vec2Model, SPEECH, NORM, today, both(NORM, below("module."))),
}


def write(folder, cls, config, seed, style):
    """A model in a style; what from_pretrained makes of it today."""
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():  # constants of the constructor, such as norms of ones, would be equal in all models
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    state = style(load_file(folder / "model.safetensors"), model)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return model.state_dict()


@pytest.mark.parametrize("name", STYLES)
def test_a_merge_equals_the_average_of_what_transformers_reads(tmp_path, name):
    cls, config, *styles = STYLES[name]
    wanted = [write(tmp_path / str(seed), cls, config, seed, style) for seed, style in enumerate(styles)]
    out = fl.merge("simple_average", tmp_path / "0", [tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    model, about = cls.from_pretrained(out, output_loading_info=True)
    assert not any(about.values()), about
    for key, value in model.state_dict().items():
        assert torch.equal(value, (wanted[1][key] + wanted[2][key]) / 2), key


@pytest.mark.parametrize(
    ("name", "readable"),
    [(name, styles) for name, (_, _, *styles) in STYLES.items() if not re.search("module|parallel|prefix|own", name)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_styles_are_ones_that_transformers_reads(tmp_path, name, readable):
    """The miniatures are what they claim to be: from_pretrained finds every weight in those without wrappers."""
    cls, config = STYLES[name][:2]
    for seed, style in enumerate(readable):
        wanted = write(tmp_path / str(seed), cls, config, seed, style)
        if any(
            part in next(iter(load_file(tmp_path / str(seed) / "model.safetensors")))
            for part in ("module.", "_orig_mod.")
        ):
            continue
        model, about = cls.from_pretrained(tmp_path / str(seed), output_loading_info=True)
        assert not about["missing_keys"]
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_what_was_done_is_on_the_card_and_the_terminal(tmp_path, capsys):
    write(tmp_path / "base", t.GPT2LMHeadModel, GPT2, 0, OLD_GPT2)
    write(tmp_path / "one", t.GPT2LMHeadModel, GPT2, 1, both(whole, below("module.")))
    card = (
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "one"], tmp_path / "out") / "README.md"
    ).read_text()
    said = capsys.readouterr().err
    for text in (card, said):
        assert "4 tensors left out that GPT2LMHeadModel does not store: h.0.attn.bias" in text
        assert "prefixes of wrappers taken away: module." in text
        assert "second names of tied tensors taken together: lm" in text
        assert re.search(r"28 tensors have another name in its file, such as transformer\.(\S+) for \1", text)


def test_a_head_of_its_own_is_not_taken_for_a_tied_one(tmp_path):
    def own_head(state, model):
        return {**state, "lm_head.weight": torch.ones(50, 16)}

    write(tmp_path / "base", t.LlamaForCausalLM, TIED_LLAMA, 0, today)
    write(tmp_path / "one", t.LlamaForCausalLM, TIED_LLAMA, 1, own_head)
    with pytest.raises(KeyMismatch, match=r"one holds values of its own under lm_head\.weight, .*tied to model\.embed"):
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "one"], tmp_path / "out")
    kept = fl.merge("simple_average", tmp_path / "base", [tmp_path / "one"], tmp_path / "kept", keep=["lm_head.*"])
    assert "lm_head.weight" not in load_file(kept / "model.safetensors")
    write(tmp_path / "untied", t.LlamaForCausalLM, TIED_LLAMA, 2, own_head)
    tied = write(tmp_path / "tied", t.LlamaForCausalLM, TIED_LLAMA, 3, today)
    out = fl.merge("simple_average", tmp_path / "untied", [tmp_path / "tied", tmp_path / "one"], tmp_path / "out")
    head = load_file(out / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head, (tied["model.embed_tokens.weight"] + 1) / 2)


def test_a_layer_too_many_is_no_head(tmp_path):
    for name, cls, layers in (
        ("base", t.BertModel, 2),
        ("one", t.BertForSequenceClassification, 3),
        ("vit", t.ViTModel, 2),
    ):
        config = t.ViTConfig(**PICTURE) if name == "vit" else t.BertConfig(**{**TEXT, "num_hidden_layers": layers})
        write(tmp_path / name, cls, config, 0, today)
    with pytest.raises(KeyMismatch, match=r"unexpected: bert\.encoder\.layer\.2"):
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "one"], tmp_path / "out")
    write(tmp_path / "deep", t.ViTForImageClassification, t.ViTConfig(**{**PICTURE, "num_hidden_layers": 3}), 0, today)
    with pytest.raises(KeyMismatch, match=r"unexpected: .*layer\.2"):
        fl.merge("simple_average", tmp_path / "vit", [tmp_path / "deep"], tmp_path / "out")


def test_two_tensors_of_one_name(tmp_path):
    def doubled(state, model):
        more = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value + 1 for name, value in state.items()}
        return {**more, **state}

    write(tmp_path / "base", t.BertModel, BERT, 0, doubled)
    write(tmp_path / "one", t.BertModel, BERT, 1, today)
    with pytest.raises(KeyMismatch, match=r"two different tensors that are both called .*LayerNorm\.weight"):
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "one"], tmp_path / "out")


def test_architectures_that_transformers_has_not(tmp_path):
    """Names are compared as they are, but for the prefixes of wrappers."""
    for name, prefix in (("base", ""), ("one", "module."), ("two", "_orig_mod.")):
        (tmp_path / name).mkdir()
        torch.manual_seed(len(name) + len(prefix))
        save_file({f"{prefix}a.weight": torch.randn(2, 2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "of my own", "architectures": ["Mine"]}))
    out = fl.merge("simple_average", tmp_path / "base", [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    expected = (one["module.a.weight"] + two["_orig_mod.a.weight"]) / 2
    assert torch.equal(load_file(out / "model.safetensors")["a.weight"], expected)
