"""Adapters that are damaged, foreign, or of kinds that can't be merged: one sentence each, naming the folder."""

import json
import os
import pickle
import shutil

import pytest
import torch
from adapter_helpers import configure, save_sound
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError, KeyMismatch, NonFiniteError

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


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
