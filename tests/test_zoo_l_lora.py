"""L-LoRA suites: states are adapters around one start, trained, saved and fused through the linearisation."""

import json
from dataclasses import replace

import pytest
import torch

import fusionlib as fl
from fusionlib import methods
from fusionlib.core import CheckpointError
from fusionlib.ops.linearized import Linearized
from fusionlib.zoo import checkpoints, job, recipe, worker
from fusionlib.zoo.embedded import embedded_backbone

TASKS = ("optdigits", "textures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("FUSIONLIB_HOME", str(folder))
        short = replace(recipe.RECIPES["l-lora"], steps=4, batch_size=8, warmup=1)
        patch.setitem(recipe.RECIPES, "l-lora", short)
        with (folder / "events").open("w") as events:
            for made in job.plan("tiny-clip", TASKS, "l-lora", 0, multitask=False):
                worker.make(made, events)
        yield folder


@pytest.fixture(scope="module")
def suite(home):
    return fl.load_suite("tiny-clip", TASKS, tuning="l-lora", device="cpu")


def test_states_are_adapters_that_share_a_start(suite):
    pretrained, finetuned = suite.weights
    assert all("lora_" in name for name in pretrained) and suite.spec.tuning == "l-lora"
    for state in finetuned:
        assert list(state) == list(pretrained)
        changed = {name for name in state if not torch.equal(state[name], pretrained[name])}
        assert changed == {name for name in state if "lora_B" in name}, "around B = 0 the derivative in A is zero"
    plain = fl.load_suite("tiny-clip", TASKS, tuning="none", device="cpu")
    batch, _ = suite.examples("textures", "val", range(8))
    torch.testing.assert_close(suite.model()(**batch), plain.model()(**batch).image_embeds, rtol=1e-4, atol=1e-4)


def test_fusing_acts_on_adapters_and_outputs_add_up(suite):
    batch, _ = suite.examples("textures", "val", range(8))
    model = fl.fuse("task_arithmetic", suite, scale=1.0)
    assert isinstance(model, Linearized)
    base, *tuned = (suite.model(state)(**batch) for state in (suite.pretrained, *suite.finetuned.values()))
    expected = base + sum(one - base for one in tuned)
    torch.testing.assert_close(model(**batch), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tuned[0], base, atol=1e-3)


def test_records_count_what_must_be_kept(suite):
    record = fl.run("simple_average", suite, split="val", limit=16)
    whole = sum(value.numel() for value in suite.backbone.plain.state.values())
    assert record.tuning == "l-lora" and record.stored_parameters > whole
    pretrained, finetuned = fl.references(suite, split="val", limit=16)
    assert pretrained.stored_parameters > whole and finetuned.stored_parameters > pretrained.stored_parameters


def test_every_method_applies_or_says_why_not(suite):
    given = {"fisher_merging": {"num_examples": 2}, "regmean": {"num_examples": 4}}
    given |= {name: {"steps": 1, "batch_size": 2} for name in ("task_wise_adamerging", "layer_wise_adamerging")}
    given |= {name: {"weights": [1.0, 2.0]} for name in ("weighted_average", "weighted_ensemble")}
    records, without = fl.run_every(suite, limit=2, settings=given)
    assert {record.method for record in records} | without.keys() == set(methods.names())
    assert without.keys() == {"depth_upscaling", "moe_merging", "moe_upscaling", "we_moe"}
    assert all("Linearized has" in reason for reason in without.values())


def test_saved_as_peft_with_its_start_and_checked(suite, home):
    made = job.plan("tiny-clip", TASKS, "l-lora", 0, multitask=False)[0]
    backbone = embedded_backbone("tiny-clip", "l-lora")
    assert (made.folder / "adapter_config.json").is_file()
    path = made.folder / checkpoints.FACTS
    facts = json.loads(path.read_text())
    try:
        path.write_text(json.dumps({**facts, "start_sha256": "other"}))
        with pytest.raises(CheckpointError, match="around another start"):
            checkpoints.load(made, backbone)
    finally:
        path.write_text(json.dumps(facts))
    assert fl.testing.assert_same_weights(checkpoints.load(made, backbone).state, suite.finetuned[TASKS[0]]) is None


def test_fingerprint_knows_the_weights_below_the_adapter(suite, monkeypatch):
    assert set(suite.backbone.plain.state) < set(suite.backbone.weights)
    again = fl.load_suite("tiny-clip", TASKS, tuning="l-lora", device="cpu")
    assert again.fingerprint == suite.fingerprint
