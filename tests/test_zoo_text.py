"""Texts: the embedded data, tokens and batches, the head of the last token, and fine-tunes that train their heads."""

import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch

import fusionlib as fl
from fusionlib.core import ParameterError
from fusionlib.zoo import checkpoints, files, finetune, job, names, recipe, worker
from fusionlib.zoo.gpt2 import LastTokenHead, tiny_gpt2
from fusionlib.zoo.recipe import get_recipe
from fusionlib.zoo.task import embedded_task

README = (files.TEXT / "README.md").read_text()
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread_home")


@pytest.mark.parametrize("name", names.TEXT_TASKS)
def test_counts_and_classes_are_the_readmes(name):
    row = re.search(rf"^\| `{name}` \|(?:[^|]*\|){{3}} ([\d,]+) / (\d+) / ([\d,]+) \| ([^|]+) \|", README, re.MULTILINE)
    task = embedded_task(name)
    assert task.modality == "text" and task.classes == tuple(row[4].split(", "))
    assert [task.num_examples(split) for split in ("train", "val", "test")] == [
        int(number.replace(",", "")) for number in row.groups()[:3]
    ]
    assert task.dataset("val").features["label"].names == list(task.classes)


def test_a_text_ends_with_the_end_token_and_is_cut_before_it():
    tokens = tiny_gpt2().preprocess
    short, long, pair = tokens.encode(["It works.", "word " * 200, "a bird <sep> It is a kind of animal."])
    assert short[-1] == long[-1] == tokens.end == 1 and len(long) == tokens.longest == 64
    assert (pair == 2).sum() == 1 and (short == 2).sum() == 0
    assert torch.equal(tokens.encode(["IT WORKS."])[0], short)  # lower case


def test_batches_are_padded_on_the_right_and_short_texts_come_first():
    backbone, task = tiny_gpt2(), embedded_task("entailment")
    parts = list(backbone.preprocess.batches(task, "val", 70, 32, CPU))
    assert [len(labels) for _, labels in parts] == [32, 32, 6]
    for batch, _ in parts:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        lengths = mask.sum(dim=1)
        assert ids.shape == mask.shape and ids.shape[1] == lengths.max()
        assert torch.equal(mask.bool(), torch.arange(ids.shape[1]) < lengths[:, None])
        assert (ids[~mask.bool()] == 0).all()
        assert (ids.gather(1, lengths[:, None] - 1) == 1).all()
    sizes = torch.cat([batch["attention_mask"].sum(dim=1) for batch, _ in parts]).tolist()
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]

    first = task.dataset("val").select(range(70))
    chosen, answers = backbone.preprocess.examples(task, "val", range(70), CPU)
    assert answers.tolist() == first["label"]
    rows = [(ids[mask.bool()].tolist(), label) for ids, mask, label in zip(*chosen.values(), answers, strict=True)]
    found = [
        (ids[mask.bool()].tolist(), label)
        for batch, labels in parts
        for ids, mask, label in zip(*batch.values(), labels, strict=True)
    ]
    few, labels = backbone.preprocess.examples(task, "val", [5, 40], CPU)
    shown = [(ids[mask.bool()].tolist(), label) for ids, mask, label in zip(*few.values(), labels, strict=True)]
    assert shown == [rows[5], rows[40]]
    assert found == sorted(rows, key=lambda row: len(row[0]))  # stable, so of one length they keep their order


def test_padding_changes_no_prediction():
    backbone, task = tiny_gpt2(), embedded_task("reviews")
    model, head = backbone.build(), backbone.start_head(task, 0)
    batch, _ = backbone.preprocess.examples(task, "val", range(12), CPU)
    assert batch["attention_mask"].sum(dim=1).unique().numel() > 1
    with torch.inference_mode():
        together = head(model(**batch).last_hidden_state, batch)
        for row in range(12):
            single, _ = backbone.preprocess.examples(task, "val", [row], CPU)
            alone = head(model(**single).last_hidden_state, single)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_the_head_reads_the_last_real_token():
    features = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    head = LastTokenHead(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert head(features, {"attention_mask": mask}).tolist() == [[2.0, 6.0], [10.0, 22.0]]
    assert not list(head.parameters())


def test_an_epoch_shows_every_example_once_beside_others_of_its_length():
    backbone, task = tiny_gpt2(), embedded_task("question")
    tuned = get_recipe("full", "tiny-gpt2", 1640)
    draw = backbone.preprocess.drawing([task], tuned, seed=3)
    steps = math.ceil(1640 / 32)
    state = torch.Generator()
    epoch = [draw(step, state) for step in range(steps)]
    rows, labels = backbone.preprocess.tokens(task, "train")
    seen = [tuple(ids[mask.bool()].tolist()) for b, _ in epoch for ids, mask in zip(*b.values(), strict=True)]
    assert sorted(seen) == sorted(tuple(row.tolist()) for row in rows)
    assert torch.cat([answers for _, (answers,) in epoch]).bincount().tolist() == labels.bincount().tolist()
    padded = sum(batch["input_ids"].numel() for batch, _ in epoch)
    assert padded < 1.1 * sum(map(len, rows))
    again, other = draw(steps + 2, state)[0], backbone.preprocess.drawing([task], tuned, seed=4)(steps + 2, state)[0]
    assert torch.equal(draw(steps + 2, torch.Generator())[0]["input_ids"], again["input_ids"])
    assert not torch.equal(other["input_ids"], again["input_ids"])
    assert not torch.equal(again["input_ids"], epoch[2][0]["input_ids"])


def test_three_epochs_of_each_task_and_nothing_else_is_offered():
    tuned = get_recipe("full", "tiny-gpt2", 1860)
    assert (tuned.steps, tuned.warmup, tuned.batch_size, tuned.learning_rate) == (177, 11, 32, 5e-4)
    assert tuned.frozen == () and tuned.weight_decay == 0.01 and tuned.clip == 1.0
    with pytest.raises(ParameterError, match=r"tiny-gpt2 has no recipe for 'lora'.*tuning=\"full\""):
        get_recipe("lora", "tiny-gpt2", 1860)


def small(**changes):
    return replace(recipe.GPT2, **{"steps": 4, "batch_size": 8, "warmup": 2, **changes})


def test_resumed_is_bit_identical_head_included(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "SNAPSHOT_STEPS", 2)
    backbone, task = tiny_gpt2(), embedded_task("reviews")

    class Stop(Exception):
        pass

    def train(name, stop_at=None):
        def on_step(step):
            if step == stop_at:
                raise Stop

        head = backbone.start_head(task, 7)
        path = tmp_path / name / "snapshot.safetensors"
        trained = finetune.finetune(backbone, [task], [head], small(), 7, path, on_step)
        return {**trained.model.state_dict(), "head": head.weight.detach()}

    whole = train("whole")
    with pytest.raises(Stop):
        train("cut", stop_at=3)
    resumed = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["head"], backbone.start_head(task, 7).weight)
    assert all(not torch.equal(tensor, whole[name]) for name, tensor in backbone.state.items())


def test_a_fine_tune_keeps_its_head_beside_its_weights():
    made = job.Job("tiny-gpt2", ("reviews",), "full", 0, small(steps=2))
    worker.make(made, io.StringIO())
    written = {"config.json", "model.safetensors", "heads.safetensors", "fusionlib.json"}
    assert {path.name for path in made.folder.iterdir()} == written
    facts = json.loads((made.folder / "fusionlib.json").read_text())
    assert set(facts["files"]) == written - {"fusionlib.json"} and facts["validation"]["reviews"][1] == 300
    loaded = checkpoints.load(made, tiny_gpt2())
    assert loaded.head["weight"].shape == (2, 128) and list(loaded.state) == list(tiny_gpt2().state)


def test_a_suite_is_made_once_and_its_models_use_their_heads(monkeypatch):
    monkeypatch.setattr(job, "get_recipe", lambda *_: small(steps=12, batch_size=16))
    arguments = {"backbone": "tiny-gpt2", "tasks": ["spam", "topic"], "device": "cpu", "progress": False}
    first, second = fl.load_suite(**arguments), fl.load_suite(**arguments)
    assert first.fingerprint == second.fingerprint and first.multitask is None
    assert first.heads["topic"].weight.shape == (8, 128)
    assert torch.equal(first.heads["spam"].weight, second.heads["spam"].weight)
    counts = fl.evaluate(first.model(first.finetuned["spam"]), first, "val", tasks=["spam"])
    assert counts["spam"][1] == 300 and counts["spam"][0] > 165
    given = fl.load_suite(**arguments, heads={"topic": torch.ones(8, 128)})
    assert given.heads["topic"].weight.eq(1).all() and given.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"tiny-gpt2 reads texts, which mnist.* are not made of.*sets of them: tiny-text7"),
        ({"backbone": "tiny-clip", "tasks": ["reviews"]}, r"tiny-clip reads images, which reviews is not made of"),
        ({"tasks": "tiny-text7", "tuning": "lora"}, "no recipe for 'lora'"),
        ({"tasks": "tiny-text7", "multitask": True}, "no recipe for 'joint'.*leave multitask out"),
        ({"tasks": "tiny-text7", "tuning": "none"}, "heads of tiny-gpt2 are trained with the fine-tunes"),
        (
            {"tasks": ["spam"], "tuning": "none", "heads": {"spam": torch.ones(3, 128)}},
            r"shape \(3, 128\).*\(2, 128\)",
        ),
    ],
)
def test_what_texts_cannot_have_is_refused(one_thread_home, arguments, message):
    with pytest.raises(ParameterError, match=message):
        fl.load_suite(**{"backbone": "tiny-gpt2", "device": "cpu", **arguments})
    assert not (one_thread_home / "checkpoints").exists()


def test_the_base_is_what_its_provenance_says():
    backbone = tiny_gpt2()
    provenance = json.loads((files.TEXT / "tiny-gpt2" / "provenance.json").read_text())
    assert sum(tensor.numel() for tensor in backbone.state.values()) == 1_596_160 and backbone.dim == 128
    assert all(torch.isfinite(tensor).all() for tensor in backbone.state.values())
    assert provenance["tokenizer_sha256"] == backbone.preprocess.tokenizer
    assert set(provenance["documents"]) == {"wordnet", "bible", "novels", "reviews", "food", "mails"}
    assert provenance["training"]["steps"] == 3000
    assert provenance["pack"] == files.hash_files(files.TEXT.glob("*.parquet"), files.TEXT)
