"""Adapters of many kinds on many architectures: merged as PEFT itself merges them, or refused with a reason."""

import copy
import warnings

import pytest
import torch

from fusionlib.testing import assert_same_weights
from fusionlib.zoo.adapter_merging import merge_into

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
EMBEDDING = {"bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}
TARGETS = {
    "bert": ["query", "value"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "vit": ["q_proj", "v_proj"],
    "clip": ["q_proj", "v_proj"],
    "t5": ["q", "v"],
}
LORA = {"r": 2, "lora_alpha": 3, "init_lora_weights": False}
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias-all": {"bias": "all"},
    "bias-lora-only": {"bias": "lora_only"},
    "one-layer": {"layers_to_transform": [1]},
    "all-linear": {"target_modules": "all-linear"},
    "patterns": {"rank_pattern": "first", "alpha_pattern": "first"},
    "excluded": {"exclude_modules": "first"},
    "saved": {"modules_to_save": "norm"},
    "tokens": {"trainable_token_indices": [1, 3]},
    "dropout": {"lora_dropout": 0.5},
}
KINDS = {
    "AdaLora": {"init_r": 2, "total_step": 10},
    "LoHa": {"r": 2},
    "LoKr": {"r": 2},
    "IA3": {"feedforward_modules": []},
    "OFT": {"oft_block_size": 4, "r": 0},
    "BOFT": {"boft_block_size": 4},
    "Vera": {"r": 2},
    "HRA": {"r": 2},
    "Miss": {"r": 2},
    "FourierFT": {"n_frequency": 5},
    "VBLoRA": {"num_vectors": 4, "vector_length": 4, "topk": 2, "r": 2},
    "Shira": {"r": 2},
}
ON_CONV1D = ("AdaLora", "IA3", "Vera", "FourierFT", "VBLoRA")  # the kinds that PEFT can put on GPT-2
NORMS = {"bert": "LayerNorm", "gpt2": "ln_1", "llama": "input_layernorm", "t5": "layer_norm"}


def model_of(kind, seed=0, tied=False):
    import transformers

    torch.manual_seed(seed)
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(vocab_size=20, **SIZES))
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=20, n_positions=12, n_embd=16, n_layer=2, n_head=2)
        return transformers.GPT2LMHeadModel(config)
    if kind == "llama":
        config = transformers.LlamaConfig(vocab_size=20, pad_token_id=0, tie_word_embeddings=tied, **SIZES)
        return transformers.LlamaForCausalLM(config)
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES))
    if kind == "clip":
        config = transformers.CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=6, **SIZES)
        return transformers.CLIPVisionModelWithProjection(config)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=20, **sizes))


def save_adapter(model, folder, config, seed=5):
    """An adapter with random numbers, saved; the weights that PEFT itself merges it to, after reading it."""
    from peft import PeftModel, get_peft_model

    base = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(folder)
        return PeftModel.from_pretrained(base, str(folder)).merge_and_unload().state_dict()


def options_of(kind, variant):
    """The settings of a variant, with names that the architecture has; None where it has nothing of the kind."""
    options = dict(VARIANTS[variant])
    if "layers_to_transform" in options and kind == "vit":
        return None  # PEFT looks for the number of a layer below a name of two parts
    first = TARGETS[kind][0]
    if "rank_pattern" in options:
        options = {"rank_pattern": {first: 4}, "alpha_pattern": {first: 9}}
    if "exclude_modules" in options:
        layer = {"gpt2": "h", "t5": "block", "bert": "layer"}.get(kind, "layers")
        options = {"exclude_modules": rf".*{layer}\.0\..*"}
    if "modules_to_save" in options:
        if kind not in NORMS:
            return None
        options = {"modules_to_save": [NORMS[kind]]}
    if "trainable_token_indices" in options:
        if kind not in EMBEDDING:
            return None
        options = {"trainable_token_indices": {EMBEDDING[kind]: [1, 3]}}
    return options


def merged(base, folder):
    model = copy.deepcopy(base)
    assert merge_into(model, folder, "the base") == {}
    return model.state_dict()


@pytest.mark.parametrize(
    ("kind", "variant"),
    [(kind, variant) for kind in TARGETS for variant in VARIANTS if options_of(kind, variant) is not None],
)
def test_lora_is_merged_as_peft_merges_it(tmp_path, kind, variant):
    from peft import LoraConfig

    options = options_of(kind, variant) or {}
    base = model_of(kind)
    wanted = save_adapter(model_of(kind), tmp_path, LoraConfig(**{**LORA, "target_modules": TARGETS[kind], **options}))
    found = merged(base, tmp_path)
    assert_same_weights(found, wanted, rtol=1e-6, atol=1e-6)
    changed = [name for name, value in base.state_dict().items() if not torch.equal(value, found[name])]
    assert changed


@pytest.mark.parametrize(("kind", "name"), [*(("llama", name) for name in KINDS), *(("gpt2", n) for n in ON_CONV1D)])
def test_other_kinds_are_merged_as_peft_merges_them(tmp_path, kind, name):
    import peft

    options = {"target_modules": TARGETS[kind], **KINDS[name]}
    if name == "IA3" and kind == "gpt2":
        options["fan_in_fan_out"] = True
    base = model_of(kind)
    wanted = save_adapter(model_of(kind), tmp_path, getattr(peft, f"{name}Config")(**options))
    assert_same_weights(merged(base, tmp_path), wanted, rtol=1e-5, atol=1e-6)
