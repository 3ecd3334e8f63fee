"""Every published suite, from the ids of the table to a record, through a stand-in hub with miniature checkpoints."""

import functools

import pytest
import torch
from hub_miniatures import (
    clip,
    clip_targets,
    clip_vision,
    glue,
    gpt2,
    image_data,
    l_lora,
    lora,
    seed_of,
    t5,
    t5_targets,
)
from hub_standin import Hub, connected, serve
from nyuv2_miniature import write_folder

import fusionlib as fl
from fusionlib.zoo.hub import table
from fusionlib.zoo.nyuv2_training import nyuv2_suite, train_nyuv2
from fusionlib.zoo.resnet import DilatedResNet, ResNetConfig

STYLES = ("prefixed", "bare", "shards", "bin")
CLIP = [name for name, family in table.families().items() if family.kind == "clip"]
METHODS = ("task_arithmetic", "ties_merging")
NYUV2 = ("segmentation", "depth", "normal")


def publish(hub: Hub) -> None:
    """Fill the hub with a miniature of every repository in the table."""
    for name in table.sets()["tall20"]:
        hub.repos["dataset", table.datasets()[name].id] = image_data(name)
    hub.repos["dataset", "glue"] = glue()
    hub.repos["model", "gpt2"] = gpt2(0)
    for task in table.sets()["glue7"]:
        labels = len(table.datasets()[task].classes)
        hub.repos["model", table.families()["gpt2"].finetuned(task, "full")] = gpt2(seed_of(task), labels)
    for family in (family for family in table.families().values() if family.kind == "t5"):
        hub.repos["model", family.pretrained] = t5(seed_of(family.name), tokenizer=True)
        for tuning, (tasks, _) in family.tunings.items():
            for index, task in enumerate(tasks):
                repo = family.finetuned(task, tuning)
                full = ("one", "tied", "shards", "bin")[index % 4]
                adapter = lora(t5_targets(), seed_of(repo), family.pretrained)
                hub.repos["model", repo] = t5(seed_of(repo), full) if tuning == "full" else adapter
    for family in map(table.families().get, CLIP):
        hub.repos["model", family.pretrained] = clip(seed_of(family.name))
        for tuning, (tasks, _) in family.tunings.items():
            for index, task in enumerate(tasks):
                repo = family.finetuned(task, tuning)
                if tuning == "full":
                    made = clip_vision(seed_of(repo), STYLES[index % len(STYLES)])
                elif tuning == "lora":
                    made = lora(clip_targets(), seed_of(repo), family.pretrained)
                else:
                    made = l_lora(seed_of(repo), family.pretrained)
                hub.repos["model", repo] = made


@pytest.fixture(scope="session")
def hub():
    hub = Hub()
    publish(hub)
    with serve(hub):
        yield hub


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory):
    """The hub's client is made to talk to the stand-in, with a cache of its own."""
    with connected(hub, tmp_path_factory.mktemp("online")):
        yield hub


SUITES = [
    ("clip-vit-base-patch32", "tall20", "full"),
    ("clip-vit-base-patch16", "ta8", "full"),
    ("clip-vit-base-patch16", "ta8", "lora"),
    ("clip-vit-base-patch16", "ta8", "l-lora"),
    ("clip-vit-large-patch14", "ta8", "full"),
    ("gpt2", "glue7", "full"),
    ("flan-t5-base", "glue8", "full"),
    ("flan-t5-base", "glue8", "lora"),
    ("flan-t5-large", "glue8", "lora"),
]


@pytest.fixture(scope="module")
def load(online):
    """Loads a suite, each once."""
    return functools.cache(lambda *asked: fl.load_suite(*asked[:2], tuning=asked[2], device="cpu", progress=False))


@pytest.mark.parametrize("asked", SUITES, ids="/".join)
def test_loads_fuses_and_evaluates(load, asked):
    suite = load(*asked)
    assert list(suite.finetuned) == list(table.sets()[asked[1]]) == [task.name for task in suite.tasks]
    assert suite.spec.backbone == asked[0] and suite.spec.tasks_name == asked[1]
    for method in METHODS:
        model = fl.fuse(method, suite)
        counts = fl.evaluate(model, suite)
        assert list(counts) == list(suite.finetuned)
        assert all(0 <= right <= total == 6 for right, total in counts.values())
    changed = [
        not torch.equal(suite.pretrained[key], state[key]) for state in suite.finetuned.values() for key in state
    ]
    assert sum(changed) >= len(suite.finetuned)


def test_gpt2_answers_as_transformers_does(load, hub, tmp_path):
    from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast

    suite = load("gpt2", "glue7", "full")
    for name, content in {**hub.repos["model", "gpt2"], **hub.repos["model", "tanganke/gpt2_mnli"]}.items():
        if "/" not in name and name != "model.safetensors":
            (tmp_path / name).write_bytes(content)
    theirs = GPT2ForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<|endoftext|>", model_max_length=48
    )
    rows = suite.task("mnli").dataset("test")
    words = tokenizer(rows["text_a"][:], rows["text_b"][:], padding=True, truncation=True, return_tensors="pt")
    words.pop("token_type_ids", None)
    with torch.inference_mode():
        wanted = theirs(**words).logits
        batch, labels = suite.examples("mnli", "test", range(6))
        ours = suite.heads["mnli"](suite.model(suite.finetuned["mnli"])(**batch).last_hidden_state, batch)
    assert labels.tolist() == rows["label"][:]
    assert (batch["input_ids"].shape[1] == 48) and len(batch["input_ids"]) == 6
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_flan_t5_answers_as_transformers_does(load):
    suite = load("flan-t5-base", "glue8", "full")
    assert [task.metric for task in suite.tasks] == ["exact_match"] * 7 + ["spearman"]
    assert not suite.backbone.config.scale_decoder_outputs
    model, tokens = suite.model(suite.finetuned["rte"]), suite.backbone.preprocess
    batch, _ = suite.examples("rte", "test", range(6))
    row = suite.task("rte").dataset("test")[0]
    question = f"Does the text: '{row['text_a']}' entail that '{row['text_b']}' is true? Provide 'yes' or 'no'."
    asked = tokens.encode([question])[0]
    assert batch["input_ids"][0, : len(asked)].tolist() == asked.tolist()
    with torch.inference_mode():
        scores = suite.heads["rte"](model(**batch).logits, batch)
        answer = torch.tensor([[*tokens.encode(["no"])[0].tolist()]])
        loss = model(input_ids=asked[None], labels=answer).loss
    torch.testing.assert_close(scores[0, 1], -loss * answer.shape[1], atol=1e-4, rtol=1e-4)
    batch, labels = suite.examples("stsb", "test", range(6))
    assert labels.dtype == torch.float32 and labels.tolist() == suite.task("stsb").dataset("test")["label"][:]
    with torch.inference_mode():
        said = suite.heads["stsb"](model(**batch).logits, batch)
    assert said.shape == (6,) and ((said >= 0) & (said <= 5)).all()


PAPER = [  # the models of the published benchmark
    ("clip-vit-base-patch32", "full", "ta8"),
    ("clip-vit-base-patch16", "full", "ta8"),
    ("clip-vit-base-patch16", "lora", "ta8"),
    ("clip-vit-base-patch16", "l-lora", "ta8"),
    ("clip-vit-large-patch14", "full", "ta8"),
    ("gpt2", "full", "glue7"),
    ("flan-t5-base", "full", "glue8"),
    ("flan-t5-base", "lora", "glue8"),
    ("flan-t5-large", "lora", "glue8"),
]


@pytest.fixture(scope="module")
def nyuv2(tmp_path_factory):
    """NYUv2 has no ids: its three models are made by our recipe, here for one epoch and with a narrow encoder."""
    root = tmp_path_factory.mktemp("nyuv2")
    config = ResNetConfig(blocks=(1, 1, 1, 1), width=2)
    torch.manual_seed(0)
    torch.save(DilatedResNet(config).state_dict(), root / "resnet.pth")
    given = {"validation": 1, "device": "cpu", "config": config}
    data, weights = write_folder(root / "data"), root / "resnet.pth"
    folders = {name: train_nyuv2(name, data, root / name, weights, epochs=1, **given) for name in NYUV2}
    return nyuv2_suite(data, folders, weights, **given)


@pytest.mark.parametrize("method", METHODS)
def test_nyuv2_is_loaded_fused_and_measured(nyuv2, method):
    record = fl.run(method, nyuv2, limit=2)
    assert record.tasks == NYUV2 and all(total == 2 for _, total in record.counts.values())
    assert record.metrics.keys() == set(NYUV2)


def test_every_published_model_is_counted(load, hub, nyuv2, record_property):
    """All 74 models and 26 tasks by name; the three of NYUv2 are made, the others come from the hub."""
    suites = {(asked[0], asked[2]): load(*asked) for asked in SUITES}
    models, tasks = set(), set()
    for backbone, tuning, named in PAPER:
        for task in table.sets()[named]:
            assert task in suites[backbone, tuning].finetuned
            repo = table.families()[backbone].finetuned(task, tuning)
            assert any(f"/{repo}/resolve/" in path for _, path, _ in hub.requests), repo
            models.add(repo)
            tasks.add((table.families()[backbone].kind, task))
    for task in nyuv2.finetuned:
        models.add(f"resnet50-nyuv2: {task}")
        tasks.add(("nyuv2", task))
    record_property("counted", f"{len(models)} models, {len(tasks)} tasks of the published suites")
    assert (len(models), len(tasks)) == (74, 26)
    assert len(suites) == len(SUITES) == len(PAPER)
