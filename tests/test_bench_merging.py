"""Merging folders of any architecture: values, formats, adapters, heads, what is copied, and every error."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch, ParameterError
from fusionlib.press.cli import main


def models(kind):
    """(architecture, configuration) with some thousand weights."""
    import transformers as t

    wide = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tall = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    match kind:
        case "vision":
            return t.ViTModel, t.ViTConfig(**wide, image_size=8, patch_size=4)
        case "encoder":
            return t.BertModel, t.BertConfig(**wide, vocab_size=50)
        case "decoder":
            return t.GPT2LMHeadModel, t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
        case "llama":
            return t.LlamaForCausalLM, t.LlamaConfig(**wide, num_key_value_heads=1, vocab_size=50)
        case "encoder-decoder":
            t5 = t.T5Config(d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, vocab_size=50)
            return t.T5ForConditionalGeneration, t5
    return t.BartModel, t.BartConfig(
        **tall, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=50
    )


def write(folder, kind, seed, **options):
    cls, config = models(kind)
    torch.manual_seed(seed)
    model = cls(config).eval()
    model.save_pretrained(folder, **options)
    return model


def midway(tmp_path, kind, **options):
    parts = [write(tmp_path / name, kind, seed, **options) for seed, name in enumerate(("base", "one", "two"))]
    return [part.state_dict() for part in parts]


@pytest.mark.parametrize("kind", ["vision", "encoder", "decoder", "llama", "encoder-decoder", "bart"])
def test_every_kind_of_backbone(tmp_path, kind):
    base, one, two = midway(tmp_path, kind)
    out = fl.merge(
        "task_arithmetic", tmp_path / "base", [tmp_path / "one", tmp_path / "two"], tmp_path / "out", scale=0.4
    )
    model, about = models(kind)[0].from_pretrained(out, output_loading_info=True)
    assert not any(about.values()), about
    for key, value in model.state_dict().items():
        expected = base[key] + 0.4 * (one[key] - base[key]) + 0.4 * (two[key] - base[key])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_shards_old_files_and_half_precision(tmp_path):
    _, one, two = midway(tmp_path, "encoder")
    write(tmp_path / "sharded", "encoder", 1, max_shard_size="4KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    (tmp_path / "old").mkdir()
    torch.save(two, tmp_path / "old" / "pytorch_model.bin")
    half = models("encoder")[0].from_pretrained(tmp_path / "base").to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    out = fl.merge("simple_average", tmp_path / "half", [tmp_path / "sharded", tmp_path / "old"], tmp_path / "out")
    state = models("encoder")[0].from_pretrained(out, dtype="auto").state_dict()
    key = "encoder.layer.0.output.dense.weight"
    assert state[key].dtype == torch.bfloat16
    torch.testing.assert_close(state[key], ((one[key] + two[key]) / 2).bfloat16())


def test_heads_are_left_out_and_files_copied(tmp_path):
    """A bare backbone and two classifiers of it: the backbones are merged."""
    from transformers import BertForSequenceClassification

    base = write(tmp_path / "base", "encoder", 0).state_dict()
    tuned = []
    for seed, (name, labels) in enumerate((("one", 2), ("two", 5)), start=1):
        config = models("encoder")[1]
        config.num_labels = labels
        torch.manual_seed(seed)
        tuned.append(BertForSequenceClassification(config))
        tuned[-1].save_pretrained(tmp_path / name)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "README.md").write_text("of the base")
    out = fl.merge("simple_average", tmp_path / "base", [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    card = (out / "README.md").read_text()
    assert "Simple" in card and "without 2 tensors: classifier.bias, classifier.weight" in card
    state = models("encoder")[0].from_pretrained(out).state_dict()
    assert list(state) == list(base)
    key = "pooler.dense.weight"
    mean = sum(model.state_dict()[f"bert.{key}"] for model in tuned) / 2
    torch.testing.assert_close(state[key], mean)


def test_adapters_are_merged_in(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = write(tmp_path / "base", "decoder", 0).state_dict()
    write(tmp_path / "full", "decoder", 1)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
        adapted = get_peft_model(models("decoder")[0].from_pretrained(tmp_path / "base"), config)
        adapted.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
        expected = adapted.merge_and_unload().state_dict()
    out = fl.merge("simple_average", tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    state = models("decoder")[0].from_pretrained(out).state_dict()
    fl.testing.assert_same_weights(state, {key: expected[key] for key in state})
    key = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(state[key], base[key])
    write(tmp_path / "other", "encoder", 0)
    with pytest.raises(CheckpointError, match=r"adapter in .*lora does not fit"):
        fl.merge("simple_average", tmp_path / "other", [tmp_path / "lora"], tmp_path / "x")


def test_keep_leaves_tensors_as_they_are(tmp_path):
    from transformers import BertForSequenceClassification

    _, config = models("encoder")
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    config.num_labels = 7
    BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    asked = ("simple_average", tmp_path / "base", [tmp_path / "tuned"], tmp_path / "out")
    with pytest.raises(KeyMismatch, match=r"classifier\.weight is \(7, 16\), the pretrained \(2, 16\).*`keep`"):
        fl.merge(*asked)
    assert not (tmp_path / "out").exists()
    state = BertForSequenceClassification.from_pretrained(fl.merge(*asked, keep=["classifier.*"])).state_dict()
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base").state_dict()
    assert torch.equal(state["classifier.weight"], base["classifier.weight"])
    assert not torch.equal(state["bert.pooler.dense.weight"], base["bert.pooler.dense.weight"])


def test_errors(tmp_path):
    midway(tmp_path, "encoder")
    write(tmp_path / "vit", "vision", 0)
    there = [tmp_path / "one"]
    with pytest.raises(KeyMismatch, match=r"vit does not fit the pretrained one. missing: .* unexpected"):
        fl.merge("simple_average", tmp_path / "base", [tmp_path / "vit"], tmp_path / "x")
    with pytest.raises(ParameterError, match=r"fisher_merging needs models that run.*ties_merging.*fl.load_suite"):
        fl.merge("fisher_merging", tmp_path / "base", there, tmp_path / "x")
    with pytest.raises(ParameterError, match=r"no hyper-parameter 'scal'. Did you mean 'scale'"):
        fl.merge("task_arithmetic", tmp_path / "base", there, tmp_path / "x", scal=1)
    with pytest.raises(CheckpointError, match="exists already"):
        fl.merge("simple_average", tmp_path / "base", there, tmp_path / "one")
    with pytest.raises(ParameterError, match="finetuned is empty"):
        fl.merge("simple_average", tmp_path / "base", [], tmp_path / "x")
    (tmp_path / "one" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="one holds no weights"):
        fl.merge("simple_average", tmp_path / "base", there, tmp_path / "x")


def test_command(tmp_path, monkeypatch, capsys):
    midway(tmp_path, "encoder")
    monkeypatch.chdir(tmp_path)
    recipe = Path("my.yaml")
    recipe.write_text(
        "method: ties_merging\npretrained: ./base\nfinetuned: [./one, ./two]\nhyperparameters: {density: 0.5}\n"
    )
    assert main(["merge", "my.yaml", "--out", "merged", "-p", "scale", "0.7"]) == 0
    assert capsys.readouterr().out == "Merged 2 models with ties_merging into merged.\n"
    assert json.loads(Path("merged/config.json").read_text())["model_type"] == "bert"
    assert '"density": 0.5, "scale": 0.7' in Path("merged/README.md").read_text()
    for text, message in (
        (
            "method: ties_merging\npretrained: base\nfinetune: [one]\n",
            "'finetune' is not part of a merge. Did you mean",
        ),
        ("method: ties_merging\npretrained: base\nfinetuned: one\n", "finetuned must be a list of strings"),
        ("pretrained: base\nfinetuned: [one]\n", "method must be a string, as in `method: ties_merging`"),
        ("- a\n", "must hold `name: value` lines"),
        ("a: [\n", "my.yaml: line 2 is not YAML"),
    ):
        recipe.write_text(text)
        assert main(["merge", "my.yaml", "--out", "x"]) == 2
        assert message in capsys.readouterr().err
