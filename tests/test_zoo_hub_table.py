"""The table of published suites: its names, its ids, and the class names and prompts beside it."""

from pathlib import Path

import pytest
import yaml

from fusionlib.core import ParameterError, UnknownName
from fusionlib.zoo import names
from fusionlib.zoo.hub import data_files, table
from fusionlib.zoo.hub.loading import asked
from fusionlib.zoo.hub.repos import Repo

PARAMS = sorted((Path(__file__).parents[1] / "params").glob("hub-*.yaml"))


def test_sets_begin_with_the_one_before():
    sets = table.sets()
    sizes = {name: len(members) for name, members in sets.items()}
    assert sizes == {"ta8": 8, "glue7": 7, "glue8": 8} | {f"tall{n}": n for n in range(10, 21, 2)}
    for smaller, larger in zip(["ta8", "tall10", "tall18"], ["tall10", "tall12", "tall20"], strict=True):
        assert sets[larger][: len(sets[smaller])] == sets[smaller]


def test_ids():
    families = table.families()
    assert families["clip-vit-base-patch32"].finetuned("stanford-cars", "full") == (
        "tanganke/clip-vit-base-patch32_stanford-cars"
    )
    assert table.datasets()["stanford-cars"].id == "tanganke/stanford_cars"
    assert families["clip-vit-base-patch16"].finetuned("dtd", "l-lora").endswith("_dtd_l-lora-16")
    assert families["flan-t5-large"].finetuned("stsb", "lora") == "tanganke/flan-t5-large_glue-stsb_lora-16"
    with pytest.raises(ParameterError, match=r"no 'lora' fine-tunes of gpt2 were published. Published: full"):
        families["gpt2"].finetuned("cola", "lora")
    with pytest.raises(ParameterError, match="published for task 'stsb'"):
        families["gpt2"].finetuned("stsb", "full")


def test_classes_and_prompts():
    for name, data in table.datasets().items():
        assert len(set(data.classes)) == len(data.classes), name
        assert all(template.count("{}") == 1 for template in data.templates), name
        assert bool(data.templates) == (data.modality == "image") == (not data.prompt), name
        assert all(f"{{{column}}}" in data.prompt for column in data.columns if column.startswith("text")), name
    assert table.datasets()["sun397"].classes[-1] == "youth hostel"
    assert table.datasets()["svhn"].classes[3] == "3"
    assert table.datasets()["stsb"].classes[::25] == ("0.0", "2.5", "5.0")


def test_a_published_name_means_what_its_backbone_reads():
    assert asked("tiny-clip", ["mnist", "fashion"]).names == ()
    assert asked("clip-vit-base-patch32", ["mnist"]).names == ("mnist",)
    assert asked("some/clip", ["mnist", "svhn"])[1:] == (("mnist", "svhn"), None)
    assert asked("some/clip", "ta8").tasks_name == "ta8"
    assert asked("gpt2", list(table.sets()["glue7"])).tasks_name == "glue7"
    assert asked("clip-vit-base-patch32", {"mine": "folder"}).names == ()
    assert names.resolve_tasks("tall10")[0][-1] == "pcam"
    with pytest.raises(UnknownName, match=r"no set of tasks is called 'ta9'. Did you mean 'ta8'"):
        asked("clip-vit-base-patch32", "ta9")
    with pytest.raises(UnknownName, match=r"no published task is called 'svnh'. Did you mean 'svhn'"):
        table.resolve(["svnh"])


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_params_files_name_published_suites(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    family = table.families()[values["backbone"]]
    assert list(values) == ["backbone", "tasks", "tuning", "seeds", "device", "eval_limit"]
    assert all(family.finetuned(task, values["tuning"]) for task in table.sets()[values["tasks"]])


def test_every_tuning_has_a_params_file():
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in PARAMS]
    published = {(family.name, tuning) for family in table.families().values() for tuning in family.tunings}
    assert {(values["backbone"], values["tuning"]) for values in found} == published


PATHS = ["README.md", "a/test-0.parquet", "a/train-0.parquet", "b/test-0.parquet", "b/test_more-0.parquet", "x.py"]


@pytest.mark.parametrize(
    ("header", "config", "split", "found"),
    [
        (None, None, "test", ["a/test-0.parquet", "b/test-0.parquet"]),
        (None, "b", "test", ["b/test-0.parquet"]),
        (None, "b", "test_more", ["b/test_more-0.parquet"]),
        (
            "configs:\n- config_name: b\n  data_files:\n  - split: test\n    path: b/*",
            "b",
            "test",
            ["b/test-0.parquet"] * 1,
        ),
        ("configs:\n- config_name: default\n  data_files:\n    test: a/test*", None, "test", ["a/test-0.parquet"]),
        ("license: mit", "a", "train", ["a/train-0.parquet"]),
    ],
)
def test_files_of_a_split(tmp_path, header, config, split, found):
    card = tmp_path / "README.md"
    card.write_text(f"---\n{header}\n---\nwords" if header else "no header")
    chosen = data_files.wanted_data("o/d", PATHS, card, config, split)
    assert chosen[: len(found)] == found


def test_a_split_without_readable_files():
    from fusionlib.core import CheckpointError

    with pytest.raises(CheckpointError, match=r"o/d has no files of split 'val' .*\.parquet or \.tar is needed"):
        data_files.wanted_data("o/d", PATHS, None, None, "val")


def test_files_of_a_model():
    paths = ["config.json", "model.safetensors", "pytorch_model.bin", "optimizer.bin", "onnx/model.safetensors"]
    paths += ["vocab.json", "spiece.model", "flax_model.msgpack"]
    assert Repo("o/m").wanted(paths, None) == ["config.json", "spiece.model", "vocab.json", "model.safetensors"]
    bare = [path for path in paths if not path.endswith(".safetensors")]
    assert Repo("o/m").wanted(bare, None)[-1] == "pytorch_model.bin"
    assert (Repo("o/m@abc").name, Repo("o/m@abc").revision, Repo("gpt2").revision) == ("o/m", "abc", "main")
