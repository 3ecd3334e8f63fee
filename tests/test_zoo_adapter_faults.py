"""Adapters that are damaged, foreign, or of kinds that can't be merged: one sentence each, naming the folder."""

import json
import os
import pickle
import shutil
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError, KeyMismatch, NonFiniteError
from fusionlib.zoo.adapters import complete_alone, is_adapter

SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def llama(seed=0, **more):
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=20, pad_token_id=0, **{**SIZES, **more})
    return transformers.LlamaForCausalLM(config)


def save_adapter(model, folder, config):
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        wrapped = get_peft_model(model, config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a pretrained model in base and an adapter in lora, from which each test takes copies."""
    from peft import LoraConfig

    root = tmp_path_factory.mktemp("sound")
    llama().save_pretrained(root / "base")
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    save_adapter(llama(), root / "lora", LoraConfig(**options))
    return root


@pytest.fixture
def base(sound):
    return sound / "base"


@pytest.fixture
def lora(sound, tmp_path):
    return shutil.copytree(sound / "lora", tmp_path / "lora")


def configure(**changes):
    """A change of entries of the configuration; None takes an entry away."""

    def change(folder):
        path = folder / "adapter_config.json"
        facts = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))

    return change


def write_config(text):
    def change(folder):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "adapter_config.json").write_bytes(data)

    return change


def tensors(edit):
    """A change of the tensors."""

    def change(folder):
        path = folder / "adapter_model.safetensors"
        state = load_file(path)
        edit(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)

    return change


def cut(size):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:size])

    return change


def as_bin(write):
    def change(folder):
        (folder / "adapter_model.safetensors").unlink()
        write(folder / "adapter_model.bin")

    return change


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.mark),)


def put(name, tensor):
    return tensors(lambda state: state.update({name: tensor}))


def drop(name):
    return tensors(lambda state: state.pop(name))


def fill(value):
    return tensors(lambda state: state[f"{Q0}.lora_A.weight"].fill_(value))


def convert(dtype):
    return tensors(lambda state: state.update({name: tensor.to(dtype) for name, tensor in state.items()}))


def rename(old, new):
    def edit(state):
        for name in list(state):
            state[name.replace(old, new)] = state.pop(name)

    return tensors(edit)


A, B = torch.ones(2, 8), torch.ones(8, 2)
DAMAGES = {
    # the configuration
    "config empty": (write_config(""), CheckpointError, "can't be read"),
    "config no JSON": (write_config("{r: 2"), CheckpointError, "can't be read"),
    "config cut": (write_config('{"peft_type": "LORA", "r": '), CheckpointError, "can't be read"),
    "config a list": (write_config("[]"), CheckpointError, "not an adapter's configuration"),
    "config a number": (write_config("3"), CheckpointError, "not an adapter's configuration"),
    "config null": (write_config("null"), CheckpointError, "not an adapter's configuration"),
    "config deep": (write_config("[" * 100_000), CheckpointError, "can't be read"),
    "config not UTF-8": (write_config(b'{"peft_type": "\xff"}'), CheckpointError, "can't be read"),
    "config a folder": (
        lambda folder: ((folder / "adapter_config.json").unlink(), (folder / "adapter_config.json").mkdir()),
        CheckpointError,
        "lora",
    ),
    "config {}": (write_config("{}"), CheckpointError, "peft_type None"),
    "kind missing": (configure(peft_type=...), CheckpointError, "peft_type None"),
    "kind null": (configure(peft_type=None), CheckpointError, "peft_type None"),
    "kind unknown": (configure(peft_type="LORAX"), CheckpointError, "'LORAX'.*Did you mean 'LORA'"),
    "kind a number": (configure(peft_type=3), CheckpointError, "peft_type 3"),
    "kind a list": (configure(peft_type=["LORA"]), CheckpointError, "peft_type"),
    "kind another": (configure(peft_type="IA3"), FusionError, "does not fit|is not a configuration"),
    "kind loha": (configure(peft_type="LOHA"), FusionError, "does not fit|is not a configuration"),
    "kind prompts": (configure(peft_type="PROMPT_TUNING"), CheckpointError, "kind PROMPT_TUNING"),
    "kind mixture": (configure(peft_type="XLORA"), CheckpointError, "kind XLORA"),
    "r missing": (configure(r=...), KeyMismatch, r"other shapes.*needed \(8, 8\)"),
    "r a text": (configure(r="2"), CheckpointError, "r is '2', but must be int"),
    "r true": (configure(r=True), CheckpointError, "r is True, but must be int"),
    "r null": (configure(r=None), CheckpointError, "does not fit"),
    "r zero": (configure(r=0), CheckpointError, "does not fit"),
    "r negative": (configure(r=-2), CheckpointError, "does not fit"),
    "r a half": (configure(r=1.5), CheckpointError, "does not fit"),
    "r another": (configure(r=3), KeyMismatch, "other shapes"),
    "r huge": (configure(r=10**30), CheckpointError, "does not fit"),
    "alpha a text": (configure(lora_alpha="16"), CheckpointError, "lora_alpha is '16'"),
    "alpha true": (configure(lora_alpha=True), CheckpointError, "lora_alpha is True"),
    "alpha a list": (configure(lora_alpha=[16]), CheckpointError, r"lora_alpha is \[16\]"),
    "alpha NaN": (configure(lora_alpha=float("nan")), CheckpointError, "it holds NaN"),
    "alpha infinite": (configure(lora_alpha=float("inf")), CheckpointError, "it holds Infinity"),
    "alpha huge": (configure(lora_alpha=1e300), FusionError, "NaN or Inf|does not fit"),
    "targets a number": (configure(target_modules=3), CheckpointError, "target_modules is 3"),
    "targets of numbers": (configure(target_modules=[1, 2]), CheckpointError, "names of modules"),
    "targets empty": (configure(target_modules=[]), CheckpointError, "does not fit"),
    "targets of another model": (configure(target_modules=["c_attn"]), CheckpointError, "does not fit.*c_attn"),
    "targets no pattern": (configure(target_modules="(q_proj"), CheckpointError, "no regular expression"),
    "targets fewer": (configure(target_modules=["q_proj"]), KeyMismatch, "unexpected.*v_proj"),
    "targets more": (configure(target_modules=["q_proj", "k_proj", "v_proj"]), KeyMismatch, "missing.*k_proj"),
    "targets a pattern for fewer": (configure(target_modules=r".*\.0\..*_proj"), FusionError, "missing|unexpected"),
    "layers fewer": (configure(layers_to_transform=[0]), KeyMismatch, r"unexpected.*layers\.1"),
    "layers not there": (configure(layers_to_transform=[7]), FusionError, "does not fit"),
    "excluded": (configure(exclude_modules=["v_proj"]), KeyMismatch, "unexpected.*v_proj"),
    "rslora a text": (configure(use_rslora="false"), CheckpointError, "use_rslora is 'false', but must be bool"),
    "dora without its tensors": (configure(use_dora=True), KeyMismatch, "missing.*lora_magnitude_vector"),
    "bias unknown": (configure(bias="some"), FusionError, "lora"),
    "bias a number": (configure(bias=1), CheckpointError, "bias is 1"),
    "saved without its tensors": (configure(modules_to_save=["lm_head"]), KeyMismatch, "missing.*lm_head"),
    "tokens without their tensors": (configure(trainable_token_indices=[1]), KeyMismatch, "missing.*tokens"),
    "rank pattern of nothing": (configure(rank_pattern={"c_attn": 4}), CheckpointError, "'c_attn' of rank_pattern"),
    "alpha pattern of nothing": (configure(alpha_pattern={"qproj": 4}), CheckpointError, "'qproj' of alpha_pattern"),
    "rank pattern": (configure(rank_pattern={"q_proj": 4}), KeyMismatch, "other shapes"),
    "alpha pattern a text": (configure(alpha_pattern={"q_proj": "4"}), CheckpointError, "must give a number"),
    "alpha pattern a list": (configure(alpha_pattern=[4]), CheckpointError, "alpha_pattern is"),
    "repeated layers": (configure(layer_replication=[[0, 2], [1, 2]]), CheckpointError, "repeats layers"),
    "switched on by tokens": (configure(alora_invocation_tokens=[1]), CheckpointError, "in the middle of a text"),
    "code named": (configure(megatron_config={"a": 1}, megatron_core="os"), CheckpointError, "megatron_config"),
    "switch of the future": (configure(use_tomorrow=True), CheckpointError, "use_tomorrow"),
    "task unknown": (configure(task_type="PAINT"), CheckpointError, "not a configuration that PEFT takes"),
    # the file
    "file missing": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        CheckpointError,
        "but no adapter_",
    ),
    "file empty": (cut(0), CheckpointError, "adapter_model.safetensors"),
    "file cut": (cut(-9), CheckpointError, "not a complete safetensors file"),
    "header cut": (cut(20), CheckpointError, "not a complete safetensors file"),
    "length alone": (cut(8), CheckpointError, "not a complete safetensors file"),
    "file a text": (
        lambda folder: (folder / "adapter_model.safetensors").write_text("<html>404</html>"),
        CheckpointError,
        "adapter_model.safetensors",
    ),
    "no tensors": (tensors(lambda state: state.clear()), CheckpointError, "holds no tensors"),
    "bin of code": (
        as_bin(lambda path: torch.save({"a": Evil()}, path)),
        CheckpointError,
        "can't be read as a file of",
    ),
    "bin a pickle": (
        as_bin(lambda path: path.write_bytes(pickle.dumps(Evil()))),
        CheckpointError,
        "can't be read as a file of",
    ),
    "bin empty": (as_bin(lambda path: path.write_bytes(b"")), CheckpointError, "adapter_model.bin"),
    "bin of something else": (
        as_bin(lambda path: torch.save([1, 2], path)),
        CheckpointError,
        "other than a state dict",
    ),
    # the tensors
    "NaN": (fill(float("nan")), NonFiniteError, "NaN or Inf in"),
    "infinite": (fill(float("inf")), NonFiniteError, "NaN or Inf in"),
    "too large": (fill(3e38), NonFiniteError, "merged, gives NaN or Inf"),
    "whole numbers": (convert(torch.int32), FusionError, "int32"),
    "bytes": (convert(torch.uint8), FusionError, "uint8"),
    "bools": (convert(torch.bool), FusionError, "bool"),
    "complex": (convert(torch.complex64), CheckpointError, "complex64"),
    "float8": (convert(torch.float8_e4m3fn), CheckpointError, "float8"),
    "one missing": (drop(f"{Q0}.lora_A.weight"), KeyMismatch, r"missing.*lora_A"),
    "half missing": (
        tensors(lambda state: [state.pop(name) for name in list(state) if "lora_B" in name]),
        KeyMismatch,
        "missing.*lora_B",
    ),
    "a layer missing": (
        tensors(lambda state: [state.pop(name) for name in list(state) if "layers.1" in name]),
        KeyMismatch,
        r"missing.*layers\.1",
    ),
    "another module": (put(Q0.replace("q_proj", "k_proj") + ".lora_A.weight", A), KeyMismatch, "unexpected.*k_proj"),
    "a layer too many": (put(Q0.replace("s.0", "s.2") + ".lora_A.weight", A), KeyMismatch, r"unexpected.*layers\.2"),
    "a tensor of the model": (put(f"{Q0}.weight", torch.ones(8, 8)), KeyMismatch, "unexpected.*q_proj.weight"),
    "a tensor of nothing": (put("extra", A), KeyMismatch, "unexpected: extra"),
    "a part of nothing": (
        put("base_model.model.other.lora_A.weight", A),
        KeyMismatch,
        "unexpected: base_model.model.o",
    ),
    "a part of nothing that is targeted": (
        put("base_model.model.other.q_proj.lora_A.weight", A),
        KeyMismatch,
        "unexpected: base_model.model.other",
    ),
    "a head that nobody saved": (put("base_model.model.score.weight", A), KeyMismatch, "unexpected.*score"),
    "a magnitude without DoRA": (put(f"{Q0}.lora_magnitude_vector", torch.ones(8)), KeyMismatch, "unexpected.*magn"),
    "a larger vocabulary": (
        put("base_model.model.model.embed_tokens.weight", torch.ones(24, 8)),
        KeyMismatch,
        r"embed_tokens.weight is \(24, 8\), needed \(20, 8\)",
    ),
    "wider": (put(f"{Q0}.lora_A.weight", torch.ones(2, 16)), KeyMismatch, r"is \(2, 16\), needed \(2, 8\)"),
    "a vector": (put(f"{Q0}.lora_A.weight", torch.ones(16)), KeyMismatch, r"is \(16,\), needed"),
    "empty": (put(f"{Q0}.lora_A.weight", torch.ones(0, 8)), KeyMismatch, r"is \(0, 8\), needed"),
    "turned": (put(f"{Q0}.lora_A.weight", B), KeyMismatch, r"is \(8, 2\), needed"),
    "names of training": (rename("lora_A.weight", "lora_A.default.weight"), KeyMismatch, "lora_A.default"),
    "names of another library": (rename("base_model.model.", "lora_unet_"), CheckpointError, "none of its modules"),
    "names of another model": (rename("model.layers", "transformer.h"), FusionError, "does not fit"),
    "names of a part": (rename("self_attn", "attention"), FusionError, "unexpected"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_adapter_is_one_sentence(base, lora, tmp_path, name):
    damage, error, sentence = DAMAGES[name]
    Evil.mark = tmp_path / "ran"
    damage(lora)
    with pytest.raises(error, match=f"(?s){sentence}") as caught:
        fl.merge("simple_average", base, [lora], tmp_path / "out")
    assert str(lora) in str(caught.value)
    assert not Evil.mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        configure(lora_alpha=2.5),
        configure(target_modules=...),
        configure(peft_version="0.3.0", corda_config=None, tomorrow=None, another={}),
        configure(auto_mapping={"base_model_class": "Evil", "parent_library": "os"}),
        configure(base_model_name_or_path=None),
        configure(base_model_name_or_path="someone/another-base"),
        configure(use_dora=None, modules_to_save=None),
        convert(torch.float16),
        convert(torch.bfloat16),
        convert(torch.float64),
        rename("base_model.model.", "base_model.model._orig_mod."),
        rename("base_model.", "module.base_model."),
        as_bin(lambda path: torch.save({f"{Q0}.lora_A.weight": A}, path)),
    ],
)
def test_sound_adapters_of_other_versions_and_wrappers_are_merged(base, lora, tmp_path, change, sound):
    before = load_file(lora / "adapter_model.safetensors")
    change(lora)
    if (lora / "adapter_model.bin").is_file():
        torch.save(before, lora / "adapter_model.bin")
    merged = load_file(fl.merge("simple_average", base, [lora], tmp_path / "out") / "model.safetensors")
    alpha = json.loads((lora / "adapter_config.json").read_text())["lora_alpha"]
    for layer in range(2):
        key = Q0.replace("s.0", f"s.{layer}")
        product = before[f"{key}.lora_B.weight"] @ before[f"{key}.lora_A.weight"]
        expected = load_file(base / "model.safetensors")[f"{key[17:]}.weight"] + alpha / 2 * product
        torch.testing.assert_close(merged[f"{key[17:]}.weight"], expected, rtol=1e-2, atol=2e-3)


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
