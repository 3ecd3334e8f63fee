"""Adapters beside whole weights, on tied weights, of classifiers, and of kinds without a change of weights."""

import shutil
import warnings
from typing import Any

import pytest
import torch
from adapter_helpers import SIZES, configure, llama, save_adapter, save_sound
from safetensors.torch import load_file

import fusionlib as fl
from fusionlib.core import CheckpointError
from fusionlib.zoo.adapters import complete_alone, is_adapter


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a pretrained model in base and an adapter in lora, from which each test takes copies."""
    return save_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def base(sound):
    return sound / "base"


@pytest.fixture
def lora(sound, tmp_path):
    return shutil.copytree(sound / "lora", tmp_path / "lora")


def test_an_adapter_beside_whole_weights_is_not_guessed_at(base, lora, tmp_path):
    both = shutil.copytree(base, tmp_path / "both")
    for path in lora.iterdir():
        shutil.copy(path, both / path.name)
    with pytest.raises(CheckpointError, match=r"both holds a whole model and an adapter, adapter_model.safetensors"):
        fl.merge("simple_average", base, [both], tmp_path / "out")
    (both / "adapter_model.safetensors").unlink()
    assert not is_adapter(both), "a configuration alone is a leftover"
    with complete_alone(both) as alone:
        assert sorted(path.name for path in alone.iterdir()) == [
            path.name for path in sorted(both.iterdir()) if not path.name.startswith("adapter")
        ]
    out = fl.merge("simple_average", both, [both], tmp_path / "out")
    assert not (out / "adapter_config.json").exists()
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(base / "model.safetensors")[name], rtol=0, atol=0)


def test_an_adapter_of_the_same_model_below_a_leftover_configuration(base, lora, tmp_path):
    """The pretrained model is read alone, although from_pretrained would follow its leftover configuration."""
    left = shutil.copytree(base, tmp_path / "left")
    shutil.copy(lora / "adapter_config.json", left)
    configure(base_model_name_or_path="nobody/nothing")(left)
    plain = load_file(fl.merge("simple_average", base, [lora], tmp_path / "one") / "model.safetensors")
    again = load_file(fl.merge("simple_average", left, [lora], tmp_path / "two") / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items()) and plain.keys() == again.keys()


@pytest.mark.parametrize(
    ("name", "error", "options"),
    [
        ("head", "changes model.embed_tokens.weight and lm_head.weight", {"target_modules": ["lm_head"]}),
        ("embedding", "changes model.embed_tokens.weight and lm_head", {"target_modules": ["embed_tokens"]}),
        ("saved head", "in different ways", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("saved embedding", "in different ways", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("both", "in different ways", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("together", "", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
        ("tokens", "", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 3]}),
        ("neither", "", {"target_modules": ["q_proj"]}),
    ],
)
def test_adapters_on_tied_weights_compute_the_same_or_are_refused(tmp_path, name, error, options):
    import transformers
    from peft import LoraConfig, PeftModel

    llama(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, init_lora_weights=False, **options)
    lora = save_adapter(llama(tie_word_embeddings=True), tmp_path / "lora", config)
    if error:
        with pytest.raises(CheckpointError, match=rf"{error}.*tie_word_embeddings=False"):
            fl.merge("simple_average", tmp_path / "base", [lora], tmp_path / "out")
        return
    out = fl.merge("simple_average", tmp_path / "base", [lora], tmp_path / "out")
    ids = torch.arange(1, 7)[None]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        expected = PeftModel.from_pretrained(llama(tie_word_embeddings=True), str(lora)).eval()(input_ids=ids).logits
        found = transformers.AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=ids).logits
        before = llama(tie_word_embeddings=True).eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuning", "PrefixTuning", "PromptEncoder"])
def test_adapters_without_a_change_of_weights_are_refused_before_anything_is_read(tmp_path, kind):
    import peft

    more = {"encoder_hidden_size": 8} if kind == "PromptEncoder" else {}
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", num_virtual_tokens=3, **more)
    save_adapter(llama(), tmp_path / "lora", config)
    (tmp_path / "base").mkdir()  # nothing in it: it is not looked at
    with pytest.raises(CheckpointError, match=r"lora is of kind P\w*_TUNING, which has no change of weights"):
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")


@pytest.mark.parametrize("variant", ["bare", "language model", "whole"])
def test_adapters_of_classifiers_on_any_model_with_their_backbone(tmp_path, variant):
    """The backbone's part is merged wherever the backbone is; a head that the model has not is handed back."""
    import transformers
    from peft import LoraConfig

    def made(cls, seed, **more):
        torch.manual_seed(seed)
        return cls(transformers.BertConfig(vocab_size=20, **SIZES, **more))

    backbone = made(transformers.BertModel, 0)
    base: Any = backbone
    if variant != "bare":
        cls = (
            transformers.BertForMaskedLM if variant == "language model" else transformers.BertForSequenceClassification
        )
        base = made(cls, 3, num_labels=3)
        base.bert.load_state_dict(backbone.state_dict(), strict=variant == "whole")  # BertForMaskedLM has no pooler
    base.save_pretrained(tmp_path / "base")
    tuned = made(transformers.BertForSequenceClassification, 1, num_labels=3)
    tuned.bert.load_state_dict(backbone.state_dict())
    options = {"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False, "task_type": "SEQ_CLS"}
    save_adapter(tuned, tmp_path / "lora", LoraConfig(**options))
    file = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    merged = load_file(
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "lora"], tmp_path / "out") / "model.safetensors"
    )
    inner = "" if variant == "bare" else "bert."
    key = "encoder.layer.1.attention.self.query"
    change = file[f"base_model.model.bert.{key}.lora_B.weight"] @ file[f"base_model.model.bert.{key}.lora_A.weight"]
    expected = backbone.state_dict()[f"{key}.weight"] + 8 / 2 * change
    torch.testing.assert_close(merged[f"{inner}{key}.weight"], expected)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("classifier.bias" in card) == (variant != "whole")
    if variant == "whole":
        assert torch.equal(merged["classifier.weight"], file["base_model.model.classifier.weight"])
