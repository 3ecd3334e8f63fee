"""Damaged, foreign and hostile files: each ends in one sentence of ours, and good ones beside them are read."""

import json
import shutil
import struct

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError
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
