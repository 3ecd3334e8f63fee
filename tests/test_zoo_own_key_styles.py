"""A user's own models in the key styles of wrappers and of older versions: as suites they are what was saved."""

import json
import re
import subprocess
import sys
import warnings

import pytest
import torch
from own_helpers import classifier, save_base, save_pictures, save_texts
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError
from fusionlib.ops.modules import predict
from fusionlib.testing import assert_same_weights


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))


def before_all(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def older_norms(state):
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }


def with_constants(*names):
    return lambda state: {**state, **{name: torch.arange(12.0) for name in names}}


STYLES = {
    "module": (["bert", "gpt2", "vit"], before_all("module.")),
    "compiled": (["bert", "llama"], before_all("_orig_mod.")),
    "both": (["bert", "gpt2"], before_all("module._orig_mod.")),
    "the other way round": (["llama"], before_all("_orig_mod.module.")),
    "gamma and beta": (["bert", "roberta"], older_norms),
    "positions": (["bert"], with_constants("bert.embeddings.position_ids")),
    "masks": (["gpt2"], with_constants("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
    "frequencies": (["llama"], with_constants("model.layers.0.self_attn.rotary_emb.inv_freq")),
}


def rewrite(folder, change):
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


@pytest.mark.parametrize(("kind", "style"), [(kind, name) for name, (kinds, _) in STYLES.items() for kind in kinds])
def test_classifiers_in_other_key_styles(tmp_path, kind, style):
    save_base(tmp_path / "base", kind)
    data = save_pictures(tmp_path / "data") if kind == "vit" else save_texts(tmp_path / "data")
    classifier(kind, 1).save_pretrained(tmp_path / "tuned")

    def load():
        return fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "tuned"}, device="cpu")

    plain = load()
    rewrite(tmp_path / "tuned", STYLES[style][1])
    styled = load()
    assert_same_weights(styled.finetuned["t"], plain.finetuned["t"], rtol=0, atol=0)
    assert_same_weights(styled.heads["t"].state_dict(), plain.heads["t"].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "classifier.bias": torch.ones(3)}, r"classifier.bias is \(3,\), needed \(2,\)"),
        (
            lambda s: {**s, "classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)},
            r"classifier.bias is \(3,\), needed \(2,\), classifier.weight is \(3, 16\), needed \(2, 16\)",
        ),
        (lambda s: {k: t for k, t in s.items() if k != "classifier.bias"}, "lacks 1 weights .*classifier.bias"),
        (lambda s: {k: t for k, t in s.items() if "classifier" not in k}, "lacks 2 weights .*classifier"),
        (lambda s: {**s, "classifier.weight": torch.ones(2, 4)}, r"classifier.weight is \(2, 4\), needed \(2, 16\)"),
        (lambda s: {k: t.to(torch.int8) for k, t in s.items()}, "is quantised"),
        (lambda s: {k: t.to(torch.float8_e4m3fn) for k, t in s.items()}, "is quantised"),
    ],
)
def test_heads_that_are_not_whole_are_named(tmp_path, change, message):
    save_base(tmp_path / "base", "bert")
    data = save_texts(tmp_path / "data")
    classifier("bert", 1).save_pretrained(tmp_path / "tuned")
    rewrite(tmp_path / "tuned", change)
    with pytest.raises(FusionError, match=f"(?s)tuned.*{message}"):
        fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "tuned"}, device="cpu")


def test_the_head_of_an_adapter_has_the_classes_of_its_task(tmp_path):
    from peft import LoraConfig, get_peft_model

    save_base(tmp_path / "base", "bert")
    data = save_texts(tmp_path / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        get_peft_model(classifier("bert", 1, 3), config).save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"lora is not one of task 't', which has 2 classes .*\(3, 16\), needed"):
        fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "lora"}, device="cpu")


def test_an_adapter_brings_its_head_to_a_pretrained_classifier_of_other_classes(tmp_path):
    from peft import LoraConfig, get_peft_model

    save_base(tmp_path / "base", "bert")
    nli = classifier("bert", 0, 3)
    nli.save_pretrained(tmp_path / "base")
    data = save_texts(tmp_path / "data")
    tuned = classifier("bert", 1, 2)
    tuned.bert.load_state_dict(nli.bert.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
        adapted = get_peft_model(tuned, config).eval()
        adapted.save_pretrained(tmp_path / "lora")
    suite = fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "lora"}, device="cpu")
    batch, _ = suite.examples("t", "test", range(4))
    with torch.inference_mode():
        found = predict(suite.model(suite.finetuned["t"]), suite.heads["t"], batch)
        torch.testing.assert_close(found, adapted(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["unheard-of", None, "bert"])
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(tmp_path, kind):
    """Whatever is on the terminal is not read: a question would wait there for ever."""
    save_base(tmp_path / "base", "bert")
    data = save_texts(tmp_path / "data")
    path = tmp_path / "base" / "config.json"
    facts = {**json.loads(path.read_text()), "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    facts["model_type"] = kind
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))
    (tmp_path / "base" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = Model = None\n")
    code = (
        f"import fusionlib as fl\ntry:\n    fl.load_suite({str(tmp_path / 'base')!r}, {{'t': {str(data)!r}}}, "
        "tuning='none', device='cpu')\nexcept fl.core.FusionError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="y\n" * 9, capture_output=True, text=True, timeout=120, check=True
    )
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in done.stdout + done.stderr
    wanted = "ParameterError there is no head" if kind == "bert" else "CheckpointError the backbone in .*never run"
    assert re.search(wanted, done.stdout), done.stdout
