"""Fine-tunes of published and own models by the published recipes: made, resumed, and loaded back."""

import json
from dataclasses import replace

import pytest
import torch
from hub_miniatures import clip, glue, gpt2, image_data, t5
from hub_standin import Hub, connected, serve
from nyuv2_miniature import write_folder
from own_helpers import save_base, save_texts

import fusionlib as fl
from fusionlib.core import ParameterError, UnknownName
from fusionlib.press.cli import main
from fusionlib.zoo import finetune, finetune_folder, inputs, nyuv2_training, published_recipes
from fusionlib.zoo.hub import table
from fusionlib.zoo.published_recipes import published_recipe
from fusionlib.zoo.training import train

CLIP, QUIET = "clip-vit-base-patch16", {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def published():
    hub, families = Hub(), table.families()
    hub.repos["model", families[CLIP].pretrained] = clip()
    hub.repos["model", families["gpt2"].pretrained] = gpt2(0)
    hub.repos["model", families["flan-t5-base"].pretrained] = t5(0, tokenizer=True)
    hub.repos["dataset", table.datasets()["eurosat"].id] = image_data("eurosat")
    hub.repos["dataset", table.datasets()["rte"].id] = glue()
    with serve(hub):
        yield hub


@pytest.fixture(scope="module")
def online(published, tmp_path_factory):
    with connected(published, tmp_path_factory.mktemp("online")):
        yield


@pytest.fixture
def short(monkeypatch):
    """Recipes of three steps, and a snapshot after each."""
    found = {
        kind: {t: (replace(recipe, steps=3, batch_size=4, learning_rate=0.01), None) for t, (recipe, _) in of.items()}
        for kind, of in published_recipes.PUBLISHED.items()
    }
    monkeypatch.setattr(published_recipes, "PUBLISHED", found)
    monkeypatch.setattr(finetune_folder, "SNAPSHOT_STEPS", 1)


def moved(suite, task):
    return {name for name, value in suite.finetuned[task].items() if not torch.equal(value, suite.pretrained[name])}


def facts_of(folder):
    return json.loads((folder / "fusionlib.json").read_text())


def test_published_numbers():
    asked = (("clip", "full"), ("clip", "lora"), ("gpt2", "full"))
    full, lora, gpt2 = (published_recipe(*each, 100) for each in asked)
    assert (full.learning_rate, full.steps, full.batch_size, full.weight_decay) == (1e-5, 4000, 32, 0)
    assert (lora.learning_rate, lora.steps, lora.rank, lora.targets) == (1e-5, 2000, 16, ("q_proj", "v_proj"))
    assert (gpt2.learning_rate, gpt2.steps) == (5e-5, 3 * 4)
    with pytest.raises(ParameterError, match=r"no recipe for tuning='lora'.*gpt2.*Allowed: full"):
        published_recipe("gpt2", "lora", 100)


@pytest.mark.parametrize(
    ("backbone", "tasks", "task", "tuning"),
    [
        (CLIP, "ta8", "eurosat", "full"),
        (CLIP, "ta8", "eurosat", "lora"),
        (CLIP, "ta8", "eurosat", "l-lora"),
        ("gpt2", "glue7", "rte", "full"),
        ("flan-t5-base", "glue8", "rte", "lora"),
        ("flan-t5-base", "glue8", "stsb", "full"),
    ],
)
def test_made_and_loaded_back(online, short, backbone, tasks, task, tuning):
    folder = train(backbone, tasks, task, tuning=tuning, **QUIET)
    assert folder.parts[-2:] == (backbone, f"{task}-{tuning}-seed0")
    facts = facts_of(folder)
    assert facts["task"] == task and facts["recipe"]["steps"] == 3
    assert {*facts["files"], "fusionlib.json"} == {path.name for path in folder.iterdir()}
    assert ("heads.safetensors" in facts["files"]) == (backbone == "gpt2")
    suite = fl.load_suite(backbone, [task], tuning=tuning, checkpoints={task: folder}, **QUIET)
    changed = moved(suite, task)
    if tuning == "full":
        assert len(changed) > 0.8 * len(suite.pretrained)
        assert not [name for name in changed if name.startswith("visual_projection.")]
    else:
        assert changed and all(".q" in name or ".v" in name for name in changed)
    if task != "stsb":  # what was measured on the trained model is measured on the loaded one
        measured = fl.evaluate(suite.model(suite.finetuned[task]), suite, "val")[task]
        assert list(measured) == facts["validation"][task]
    written = (folder / "fusionlib.json").stat().st_mtime_ns
    assert train(backbone, tasks, task, tuning=tuning, **QUIET) == folder
    assert (folder / "fusionlib.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(("backbone", "task", "tuning"), [(CLIP, "eurosat", "l-lora"), ("gpt2", "rte", "full")])
def test_goes_on_after_an_interruption(online, short, tmp_path, monkeypatch, backbone, task, tuning):
    whole = train(backbone, [task], task, tuning=tuning, seed=1, out=tmp_path / "whole", **QUIET)
    backward, calls = finetune._backward, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        backward(*given)

    monkeypatch.setattr(finetune, "_backward", interrupted)
    asked = {"tuning": tuning, "seed": 1, "out": tmp_path / "resumed", **QUIET}
    with pytest.raises(KeyboardInterrupt):
        train(backbone, [task], task, **asked)
    assert not (tmp_path / "resumed").exists()
    resumed = train(backbone, [task], task, **asked)
    assert len(calls) == 4  # the third step alone was left
    assert facts_of(resumed)["files"] == facts_of(whole)["files"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial", "resumed", "whole"]
    assert not [path for path in (tmp_path / ".partial").iterdir() if path.is_dir()]


def test_another_fine_tune_in_the_folder_is_refused(online, short, tmp_path):
    train(CLIP, "ta8", "eurosat", out=tmp_path / "made", **QUIET)
    with pytest.raises(ParameterError, match=r"made is there and holds another fine-tune: it differs in seed\."):
        train(CLIP, "ta8", "eurosat", seed=2, out=tmp_path / "made", **QUIET)
    (tmp_path / "other").mkdir()
    with pytest.raises(ParameterError, match="other is there and is no fine-tune"):
        train(CLIP, "ta8", "eurosat", out=tmp_path / "other", **QUIET)


def test_pictures_decoded_when_drawn_are_the_same(online, short, tmp_path, monkeypatch):
    made = train(CLIP, "ta8", "eurosat", out=tmp_path / "memory", **QUIET)
    monkeypatch.setattr(inputs, "MEMORY", 0)
    again = train(CLIP, "ta8", "eurosat", out=tmp_path / "drawn", **QUIET)
    assert facts_of(made)["files"] == facts_of(again)["files"]


def test_an_own_classifier_from_a_file_of_parameters(short, tmp_path, monkeypatch, capsys):
    """The file names the checkpoint before it is made; afterwards the suite loads from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    save_base(tmp_path / "base", "bert")
    save_texts(tmp_path / "mine")
    lines = "backbone: ./base\ntasks:\n  mine: {data: ./mine, checkpoint: ./tuned}\nseeds: [3]\ndevice: cpu\n"
    (tmp_path / "mine.yaml").write_text(lines)
    capsys.readouterr()
    assert main(["train", "--params", "mine.yaml", "--task", "mine", "--out", "tuned"]) == 0
    said, shown = capsys.readouterr()
    assert "tuned" in said and "Fine-tuning ./base, seed 3: 1 to make" in shown and "Writing" not in shown
    assert facts_of(tmp_path / "tuned")["seed"] == 3
    tasks = {"mine": {"data": "./mine", "checkpoint": "./tuned"}}
    suite = fl.load_suite("./base", tasks, **QUIET)
    assert len(moved(suite, "mine")) > 10
    measured = fl.evaluate(suite.model(suite.finetuned["mine"]), suite, "val")["mine"]
    assert list(measured) == facts_of(tmp_path / "tuned")["validation"]["mine"]


def test_embedded_fine_tunes_are_those_of_prepare(tmp_path, monkeypatch):
    from fusionlib.zoo import training

    made = tmp_path / "made"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    asked = []
    monkeypatch.setattr(training, "prepare", lambda *given, **more: asked.append(given) or [made])
    assert train("tiny-clip", "tiny8", "mnist", tuning="lora", seed=2, **QUIET) == made
    assert asked == [("tiny-clip", ["mnist"], "lora", 2)]
    copy = train("tiny-clip", "tiny8", "mnist", out=tmp_path / "copy", **QUIET)
    assert (copy / "model.safetensors").read_bytes() == b"weights"


def test_nyuv2_holds_out_a_tenth(tmp_path, monkeypatch, capsys):
    calls = []

    def stand_in(*given, on_step, **more):
        on_step(1, 3)
        calls.append((given, more))
        return given[2]

    monkeypatch.setattr(nyuv2_training, "train_nyuv2", stand_in)
    data = write_folder(tmp_path / "data")
    with pytest.raises(ParameterError, match="give its file as pretrained="):
        train("resnet50-nyuv2", {"depth": data}, "depth", **QUIET)
    lines = f"backbone: resnet50-nyuv2\ntasks: {{depth: {data}}}\npretrained: resnet.pth\ndevice: cpu\n"
    (tmp_path / "nyuv2.yaml").write_text(lines)
    arguments = ["--params", str(tmp_path / "nyuv2.yaml"), "--task", "depth", "--out", str(tmp_path / "depth")]
    assert main(["train", *arguments]) == 0
    ((given, more),) = calls
    assert given == ("depth", str(data), tmp_path / "depth", "resnet.pth")
    assert more == {"validation": 1, "seed": 0, "device": "cpu"}
    assert "Fine-tuning resnet50-nyuv2, seed 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (("tiny-clip", "tiny8", "mnits"), UnknownName, "no task 'mnits' to train on. Did you mean 'mnist'"),
        ((CLIP, "ta8", "eurosta"), UnknownName, "Did you mean 'eurosat'"),
        (("tiny-clip", "tiny8", "mnist", "none"), ParameterError, "trains nothing"),
        (("tiny-gpt2", "tiny-text7", "spam", "lora"), ParameterError, "has no recipe for 'lora', only for full"),
        (("resnet50-nyuv2", "tiny-nyu3", "depth"), ParameterError, "need their data"),
    ],
)
def test_clear_errors(asked, error, message):
    tuning = asked[3] if len(asked) > 3 else "full"
    with pytest.raises(error, match=message):
        train(*asked[:3], tuning=tuning, **QUIET)


def test_no_train_split(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    save_base(tmp_path / "base", "bert")
    save_texts(tmp_path / "mine")
    for path in (tmp_path / "mine").iterdir():
        if "test" not in path.name:
            path.unlink()
    with pytest.raises(ParameterError, match="'mine' has no train split, only test: add files"):
        train(tmp_path / "base", {"mine": tmp_path / "mine"}, "mine", **QUIET)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("backbone: tiny-clip\n", "x.yaml does not say tasks"),
        ("backbone: tiny-clip\ntasks: tiny8\ntunning: lora\n", "line 3: 'tunning' is not known. Did you mean 'tuning'"),
        ("backbone: tiny-clip\ntasks: tiny9\n", "line 2: no set of tasks is called 'tiny9'"),
    ],
)
def test_files_of_parameters_are_checked_first(tmp_path, capsys, lines, message):
    (tmp_path / "x.yaml").write_text(lines)
    assert main(["train", "--params", str(tmp_path / "x.yaml"), "--task", "mnist"]) == 2
    assert message in capsys.readouterr().err
