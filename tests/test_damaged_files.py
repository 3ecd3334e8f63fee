"""Damaged, foreign and hostile files: each ends in one sentence of ours, and good ones beside them are read."""

import json
import os
import shutil
import struct

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError, KeyMismatch, ParameterError
from fusionlib.methods import simple_ensemble
from fusionlib.testing import tiny_transformer
from fusionlib.zoo.weights import read_weights

WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
CONFIG = t.BertConfig(**WIDE, vocab_size=50, max_position_embeddings=16)
JUNK = (None, True, 3, -1, 1.5, "text", [], [1], {}, {"a": 1}, [[["x"]]], "../elsewhere", "\0", "ä" * 300)
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """base: one file; shards; bin; saved: by fl.save; ensemble: by fl.save."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    model = t.BertModel(CONFIG)
    model.save_pretrained(folder / "base")
    model.save_pretrained(folder / "shards", max_shard_size="8KB")
    model.config.save_pretrained(folder / "bin")
    torch.save(model.state_dict(), folder / "bin" / "pytorch_model.bin")
    fl.save(tiny_transformer(1), folder / "saved")
    fl.save(simple_ensemble.fuse(tiny_transformer(), [tiny_transformer(1)] * 2), folder / "ensemble")
    return folder


def merge(folder, good, out):
    return fl.merge("simple_average", good / "base", [folder], out)


def bad_bytes(path):
    """Ways in which a file of bytes is damaged."""
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    for size in (0, 1, 7, 8, 9, 20, len(whole) // 2, len(whole) - 1):
        yield f"cut to {size}", whole[:size]
    for place in range(0, min(length, 400), 12):
        yield f"flipped {place}", whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
    yield "html", b"<!doctype html><html>404</html>"
    yield "pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "longer", whole + b"more"
    yield "huge header", struct.pack("<Q", 2**62) + whole[8:]


def test_damaged_weights(good, tmp_path):
    tried = 0
    for name, file in (("base", "model.safetensors"), ("bin", "pytorch_model.bin")):
        for label, data in bad_bytes(good / name / file):
            if name == "bin" and label.startswith(("longer", "huge", "flipped")):
                continue  # a zip file is read from its end, and has checksums only where it is unpacked
            folder = tmp_path / f"{name}-{tried}"
            shutil.copytree(good / name, folder)
            (folder / file).write_bytes(data)
            with pytest.raises(FusionError) as caught:
                merge(folder, good, tmp_path / "out")
            assert str(folder) in str(caught.value), label
            tried += 1
    assert tried > 40


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_junk_in_json_files(good, tmp_path, junk):
    """In place of a whole file, and of every field that is read."""
    text = json.dumps(junk)
    for name, path in (("shards", INDEX), ("base", "config.json"), ("saved", "structure.json")):
        folder = tmp_path / name
        shutil.copytree(good / name, folder)
        (folder / path).write_text(text)
        if name == "base" and isinstance(junk, dict):
            continue  # a configuration of an architecture that transformers has not
        with pytest.raises(FusionError):
            fl.load(folder) if name == "saved" else fl.merge(
                "simple_average", folder, [good / "base"], tmp_path / "out"
            )
    index = json.loads((good / "shards" / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    for number, changed in enumerate(({"weight_map": junk}, {"weight_map": {**index["weight_map"], first: junk}})):
        folder = tmp_path / f"map-{number}"
        shutil.copytree(good / "shards", folder)
        (folder / INDEX).write_text(json.dumps({**index, **changed}))
        with pytest.raises(FusionError):
            merge(folder, good, tmp_path / "out")


def good_fields(name):
    """Junk that is right by chance."""
    return {"options": ({},), "dtypes": ({},), "given": ()}.get(name, ())


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_junk_in_structures(good, tmp_path, junk):
    for name in ("saved", "ensemble"):
        structure = json.loads((good / name / "structure.json").read_text())
        for field in {*structure, "options", "dtypes"}:
            if field == "given" and junk == {}:
                continue  # that one is an error of Ensemble's own, below
            folder = tmp_path / f"{name}-{field}"
            shutil.copytree(good / name, folder)
            (folder / "structure.json").write_text(json.dumps({**structure, field: junk}))
            if junk in good_fields(field):
                fl.load(folder)
                continue
            with pytest.raises(CheckpointError):
                fl.load(folder)
    given = json.loads((good / "ensemble" / "structure.json").read_text())
    for field in ("average", "weights", "other"):
        if (field, junk) == ("weights", None):
            continue  # equal weights
        (tmp_path / "ensemble-given").exists() or shutil.copytree(good / "ensemble", tmp_path / "ensemble-given")
        changed = {**given, "given": {**given["given"], field: junk}}
        (tmp_path / "ensemble-given" / "structure.json").write_text(json.dumps(changed))
        with pytest.raises(FusionError):
            fl.load(tmp_path / "ensemble-given")


@pytest.mark.parametrize(
    "place", ["../private.safetensors", "/{}/private.safetensors", "x/../../private.safetensors", ".."]
)
def test_shards_stay_in_their_folder(good, tmp_path, place):
    folder = tmp_path / "model"
    shutil.copytree(good / "shards", folder)
    index = json.loads((folder / INDEX).read_text())
    _, file = next(iter(index["weight_map"].items()))
    shutil.copyfile(folder / file, tmp_path / "private.safetensors")
    name = place.replace("{}", str(tmp_path).strip("/"))
    moved = {key: name if value == file else value for key, value in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": moved}))
    with pytest.raises(CheckpointError, match="does not lie in its own folder, so it is not read"):
        read_weights(folder)


def test_links_of_the_hubs_cache_are_followed_and_others_not(good, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((good / "shards").iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    wanted = load_file(good / "base" / "model.safetensors")
    assert read_weights(snapshot).keys() == wanted.keys()
    linked = tmp_path / "linked"  # as `ln -s shards/* .` makes it
    linked.mkdir()
    for path in (good / "shards").iterdir():
        (linked / path.name).symlink_to(path)
    assert read_weights(linked).keys() == wanted.keys()
    (linked / INDEX).unlink()
    shutil.copyfile(good / "shards" / INDEX, linked / INDEX)
    with pytest.raises(CheckpointError, match="a link to a file outside of its own folder"):
        read_weights(linked)


def test_the_weights_that_transformers_would_read(good, tmp_path, caplog):
    folder = tmp_path / "model"
    shutil.copytree(good / "shards", folder)
    torch.save({"stale": torch.ones(1)}, folder / "pytorch_model.bin")
    assert "stale" not in read_weights(folder)
    assert "several sets of weights; model.safetensors.index.json is read, not pytorch_model.bin" in caplog.text
    save_file({"newer": torch.ones(1)}, folder / "model.safetensors")
    assert read_weights(folder).keys() == {"newer"}
    for file in folder.iterdir():
        file.unlink()
    for file, message in (
        ("model.fp16.safetensors", r"only of a variant: model\.fp16\.safetensors"),
        ("model.gguf", "GGUF files are quantised"),
        ("tf_model.h5", "that can be read, but tf_model.h5"),
        ("notes.md", "found: notes.md"),
    ):
        (folder / file).touch()
        with pytest.raises(CheckpointError, match=message):
            read_weights(folder)
        (folder / file).unlink()


def test_a_name_twice_in_a_header_and_a_tensor_in_two_shards(good, tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = f'{{"a":{entry % (0, 4)},"a":{entry % (0, 4)}}}'.encode()
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"damaged|not a complete"):
        read_weights(tmp_path / "twice")
    shutil.copytree(good / "shards", tmp_path / "mixed")
    index = json.loads((tmp_path / "mixed" / INDEX).read_text())
    first, second, *_ = sorted(set(index["weight_map"].values()))
    state = load_file(tmp_path / "mixed" / first)
    save_file(
        {**load_file(tmp_path / "mixed" / second), **{k: v + 1 for k, v in state.items()}}, tmp_path / "mixed" / second
    )
    with pytest.raises(CheckpointError, match="hold different values"):
        read_weights(tmp_path / "mixed")


GPTQ = {"model.q.qweight": torch.ones(2, 2, dtype=torch.int32), "model.q.scales": torch.ones(2, 2)}
CODES = torch.ones(2, 2, dtype=torch.int8)
FP8 = torch.ones(2, 2).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("state", "facts", "beside"),
    [
        ({}, {"quantization_config": {"quant_method": "gptq"}}, ""),
        ({}, {"quantization_config": {"load_in_8bit": True}}, ""),
        ({}, {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, ""),
        ({}, {"compression_config": {"format": "pack"}}, ""),
        ({}, {}, "quantize_config.json"),
        ({}, {}, "hf_quant_config.json"),
        (GPTQ, {}, ""),
        ({"a.weight": CODES, "a.SCB": torch.ones(2)}, {}, ""),
        ({"a.weight": torch.ones(4, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(2)}, {}, ""),
        ({"a.weight": FP8, "a.weight_scale_inv": torch.ones(1, 1)}, {}, ""),
        ({"a.weight": FP8}, {}, ""),
        ({"a.weight": CODES, "a.weight_scale": torch.ones(1)}, {}, ""),
        ({"a.weight_packed": torch.ones(2, 2, dtype=torch.int32)}, {}, ""),
    ],
)
def test_quantised_checkpoints_are_refused_with_advice(good, tmp_path, state, facts, beside):
    folder = tmp_path / "model"
    shutil.copytree(good / "base", folder)
    save_file({**load_file(folder / "model.safetensors"), **state}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **facts}))
    if beside:
        (folder / beside).write_text('{"bits": 4}')
    for ask in (
        lambda: merge(folder, good, tmp_path / "out"),
        lambda: fl.merge("simple_average", folder, [good / "base"], tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=r"is quantised.*Merge before quantising"):
            ask()


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
