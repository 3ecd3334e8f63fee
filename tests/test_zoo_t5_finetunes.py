"""Fine-tunes and fusions of text-to-text models: recipes, resuming, suites, ties in every method, saving."""

import io
import json
from dataclasses import replace

import pytest
import torch

import fusionlib as fl
from fusionlib.bench.evaluate import measure_task
from fusionlib.core import ParameterError
from fusionlib.ops.statedict import num_parameters, tied_names
from fusionlib.zoo import checkpoints, finetune, job, recipe, worker
from fusionlib.zoo.t5 import tiny_t5
from fusionlib.zoo.task import embedded_task

ALIASES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
pytestmark = pytest.mark.usefixtures("one_thread_home")


@pytest.fixture(scope="module")
def backbone():
    return tiny_t5()


def small(**changes):
    return replace(recipe.T5, **{"steps": 4, "batch_size": 8, "warmup": 2, **changes})


def small_lora(**changes):
    return small(rank=4, alpha=8, targets=("q", "v"), **changes)


@pytest.mark.parametrize("tuned", [small(), small_lora()], ids=["full", "lora"])
def test_resumed_is_bit_identical(backbone, tmp_path, monkeypatch, tuned):
    monkeypatch.setattr(finetune, "SNAPSHOT_STEPS", 2)
    task = embedded_task("reviews")

    class Stop(Exception):
        pass

    def train(name, stop_at=None):
        def on_step(step):
            if step == stop_at:
                raise Stop

        path = tmp_path / name / "snapshot.safetensors"
        head = backbone.start_head(task, 7)
        return finetune.finetune(backbone, [task], [head], tuned, 7, path, on_step).model.state_dict()

    whole = train("whole")
    with pytest.raises(Stop):
        train("cut", stop_at=3)
    resumed = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_suite_is_made_once_stays_tied_and_counts_exact_matches(monkeypatch, tmp_path, tuning):
    monkeypatch.setattr(job, "get_recipe", lambda *_: small() if tuning == "full" else small_lora())
    arguments = {"backbone": "tiny-t5", "tasks": ["spam", "topic"], "device": "cpu", "progress": False}
    suite = fl.load_suite(**arguments, tuning=tuning)
    assert fl.load_suite(**arguments, tuning=tuning).fingerprint == suite.fingerprint
    for state in suite.finetuned.values():
        assert set(tied_names(state)) == ALIASES
        moved = {name for name, value in state.items() if not torch.equal(value, suite.pretrained[name])}
        assert moved and (tuning == "full" or all(name.endswith((".q.weight", ".v.weight")) for name in moved))
    (_, total), metrics = measure_task(suite.model(), suite, "topic", "val", limit=20)
    assert total == 20 and 0 <= metrics["exact_match"] <= 1
    assert set(fl.references(suite, limit=8)[1].metrics) == {"spam", "topic"}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ties_merging", {}),
        ("regmean", {"num_examples": 24, "batch_size": 12}),
        ("fisher_merging", {"num_examples": 2}),
        ("layer_wise_adamerging", {"steps": 1, "batch_size": 2}),
    ],
)
def test_methods_fuse_the_embedding_once(backbone, method, settings):
    suite = moved_suite()
    fused = fl.fuse(method, suite, **settings)
    assert fused.lm_head.weight is fused.shared.weight and fused.encoder.embed_tokens.weight is fused.shared.weight
    assert sum(p.numel() for p in fused.parameters()) == num_parameters(suite.pretrained)
    assert not torch.equal(fused.shared.weight, suite.pretrained["shared.weight"])
    assert all(torch.isfinite(p).all() for p in fused.parameters())


def test_a_fused_model_is_saved_and_read_again(tmp_path):
    suite = moved_suite()
    fused = fl.fuse("simple_average", suite)
    fl.save(fused, tmp_path / "fused")
    again = fl.load(tmp_path / "fused")
    assert again.lm_head.weight is again.shared.weight
    for name, value in fused.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def moved_suite():
    """Two tasks, and fine-tunes that are the base with noise."""
    suite = fl.load_suite("tiny-t5", ["reviews", "topic"], tuning="none", device="cpu")
    generator = torch.Generator().manual_seed(0)
    ties = tied_names(suite.pretrained)
    finetuned = {}
    for name in suite.spec.tasks:
        state = {}
        for key, value in suite.pretrained.items():
            noise = torch.randn(value.shape, generator=generator) * value.std().nan_to_num(0)
            state[key] = state[ties[key]] if key in ties else value + 0.05 * noise
        finetuned[name] = state
    return replace(suite, finetuned=finetuned)


@pytest.mark.parametrize("rank", [None, 4])
def test_a_worker_writes_what_is_read_again(backbone, rank):
    tuned = small(steps=2) if rank is None else small_lora(steps=2)
    made = job.Job("tiny-t5", ("spam",), "full" if rank is None else "lora", 0, tuned)
    worker.make(made, io.StringIO())
    facts = json.loads((made.folder / "fusionlib.json").read_text())
    assert facts["validation"]["spam"][1] == 300
    assert "model.safetensors" in facts["files"] or "adapter_model.safetensors" in facts["files"]
    loaded = checkpoints.load(made, backbone)
    assert loaded.head is None and list(loaded.state) == list(backbone.state)


def test_recipes_see_each_example_a_few_times(backbone):
    full, lora = (recipe.get_recipe(tuning, "tiny-t5", 1860) for tuning in ("full", "lora"))
    assert full.rank is None and full.frozen == ()
    assert lora.rank and lora.targets == ("q", "k", "v", "o", "wi_0", "wi_1", "wo")
    assert full.steps % 59 == 0 and lora.steps % 59 == 0 and full.batch_size == lora.batch_size == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"tiny-t5 reads texts, which mnist.* are not made of.*sets of them: tiny-text7, tiny-text5"),
        ({"tasks": "tiny-text5", "multitask": True}, "no recipe for 'joint', only for full, lora"),
        ({"tasks": ["spam"], "tuning": "none", "heads": {"spam": torch.ones(2, 128)}}, "answers in words"),
    ],
)
def test_what_is_not_to_be_had_is_refused(one_thread_home, arguments, message):
    with pytest.raises(ParameterError, match=message):
        fl.load_suite(**{"backbone": "tiny-t5", "device": "cpu", **arguments})
    assert not (one_thread_home / "checkpoints").exists()
