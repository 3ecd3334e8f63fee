"""What a merge is asked for and writes: places, lists, companions, vocabularies, cards, and what others left."""

import json
import os
import shutil

import pytest
import torch
import transformers as t

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError, KeyMismatch, ParameterError
from fusionlib.testing import tiny_transformer

WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    t.BertModel(t.BertConfig(**WIDE, vocab_size=50, max_position_embeddings=16)).save_pretrained(folder / "base")
    return folder


def merge(folder, good, out):
    return fl.merge("simple_average", good / "base", [folder], out)


@pytest.mark.parametrize(
    "place",
    ["base/model.safetensors/x", "/proc/x", "/dev/null/x", "x" * 300, "a\0b", "dangling", "~nouser/x", "base", ""],
)
def test_places_that_nothing_can_be_written_to(good, tmp_path, monkeypatch, place):
    shutil.copytree(good / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(os.listdir())
    model = tiny_transformer()
    for ask in (lambda: merge(good / "base", good, place), lambda: fl.save(model, place)):
        with pytest.raises(CheckpointError, match=r"choose another|Choose"):
            ask()
    assert sorted(os.listdir()) == before


def test_models_that_are_nowhere(good, tmp_path):
    for name in ("~nouser/x", "a\0b", "x" * 5000, f"{good}/base/config.json", "./not/there", str(tmp_path)):
        for ask in (
            lambda name=name: fl.merge("simple_average", name, [good / "base"], tmp_path / "out"),
            lambda name=name: merge(name, good, tmp_path / "out"),
            lambda name=name: fl.load(name),
        ):
            with pytest.raises(FusionError):
                ask()


def test_keep_and_finetuned_are_lists(good, tmp_path):
    def ask(finetuned=None, **more):
        return fl.merge("simple_average", good / "base", finetuned or [good / "base"], tmp_path / "out", **more)

    for wrong, message in (
        ({"keep": "pooler.*"}, r"keep must be a list, as in keep=\['pooler"),
        ({"keep": [3]}, "list of texts"),
        ({"finetuned": str(good / "base")}, "finetuned must be a list"),
        ({"finetuned": [None]}, "list of texts"),
        ({"keep": ["poler.*"]}, r"Did you mean 'pooler\.\*'"),
        ({"keep": ["head.*"]}, r"fits no tensor of these models. Their parts: embeddings\.\*, encoder\.\*, pooler\.\*"),
        ({"keep": ["*"]}, "nothing is left to merge"),
    ):
        with pytest.raises(ParameterError, match=message):
            ask(**wrong)
    with pytest.raises(ParameterError, match="return_all makes model_recombination give several models"):
        fl.merge("model_recombination", good / "base", [good / "nowhere"], tmp_path / "out", return_all=True)
    card = (ask(keep=["pooler.*", "head.*"]) / "README.md").read_text(encoding="utf-8")
    assert "(2 tensors)" in card and "which fits none of their tensors" in card


def test_a_card_shows_names_as_they_are_written(good, tmp_path):
    evil = tmp_path / "<img src=x onerror=alert(1)> `|[a](b)"
    shutil.copytree(good / "base", evil)
    card = (merge(evil, good, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    line = next(line for line in card.splitlines() if "<img" in line)
    assert line == f"- ``{evil}``"


def test_companions_travel_and_leftovers_do_not(good, tmp_path):
    source = tmp_path / "base"
    shutil.copytree(good / "base", source)
    there = (
        "tokenizer.json",
        "chat_template.jinja",
        "modeling_own.py",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
    )
    there += ("additional_chat_templates/tool.jinja", "generation_config.json", "preprocessor_config.json", "LICENSE")
    gone = ("onnx/model.onnx", "onnx/config.json", "checkpoint-500/config.json", "optimizer.pt", "training_args.bin")
    gone += (
        "model.gguf",
        "flax_model.msgpack",
        "tf_model.h5",
        ".git/config",
        "runs/x/events.out.tfevents.1",
        "adapter_config.json",
    )
    for name in (*there, *gone):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    modules = [{"path": "1_Pooling"}, {"path": "2_Dense"}]
    (source / "modules.json").write_text(json.dumps(modules))
    out = fl.merge("simple_average", source, [good / "base"], tmp_path / "out")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "README.md", "modules.json", *there}


def test_another_vocabulary_is_said(good, tmp_path, capsys):
    for name, words in (("base", "abc"), ("one", "acb"), ("two", "abc")):
        shutil.copytree(good / "base", tmp_path / name)
        vocabulary = {word: number for number, word in enumerate(words)}
        (tmp_path / name / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []})
        )
    out = fl.merge("simple_average", tmp_path / "base", [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    for text in ((out / "README.md").read_text(encoding="utf-8"), capsys.readouterr().err):
        assert text.count("its vocabulary differs") == 1
        assert "2 tokens have another number (such as 'b': 1, 2)" in text


def test_what_killed_merges_left_is_removed_and_what_others_write_is_not(good, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    for name in ("dead", "alive"):
        (tmp_path / f".fusionlib-{name}").mkdir()
        (tmp_path / f".fusionlib-{name}" / ".lock").touch()
    with (tmp_path / ".fusionlib-alive" / ".lock").open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        merge(good / "base", good, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fusionlib-alive", "out"]


def test_a_place_that_another_process_took(good, tmp_path, monkeypatch):
    from fusionlib.bench import merging

    write = merging._write

    def late(*given):
        write(*given)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    monkeypatch.setattr(merging, "_write", late)
    with pytest.raises(CheckpointError, match="was written by another process in the meantime"):
        merge(good / "base", good, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_other_models_do_not_fit(good, tmp_path):
    t.ViTModel(t.ViTConfig(**WIDE, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    with pytest.raises(KeyMismatch, match=r"missing: .*unexpected: "):
        merge(tmp_path / "vit", good, tmp_path / "out")


def test_what_is_fetched_from_the_hub_beside_the_weights():
    from fusionlib.zoo.hub.repos import Repo

    paths = ["config.json", "model.safetensors", "pytorch_model.bin", "chat_template.jinja", "modeling_own.py", "a.png"]
    paths += ["1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/model.onnx", "onnx/config.json", "model.gguf"]
    paths += ["checkpoint-5/config.json", "additional_chat_templates/tool.jinja", "training_args.bin"]
    plain = Repo("a/b").wanted(paths, None)
    assert sorted(plain) == ["config.json", "model.safetensors"]
    more = set(Repo("a/b", companions=True).wanted(paths, None)) - set(plain)
    travelling = {"chat_template.jinja", "modeling_own.py", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert more == {*travelling, "additional_chat_templates/tool.jinja"}
