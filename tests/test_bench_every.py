"""Every method on one suite: what applies is measured, and what does not says why."""

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch

import fusionlib as fl
from fusionlib import methods
from fusionlib.core import NotApplicable, UnknownName
from fusionlib.zoo.dense import tiny_nyu
from fusionlib.zoo.task import embedded_task

FEW = {"fisher_merging": {"num_examples": 2}, "regmean": {"num_examples": 4}}
FEW |= {name: {"steps": 1, "batch_size": 2} for name in ("task_wise_adamerging", "layer_wise_adamerging", "we_moe")}
pytestmark = pytest.mark.usefixtures("one_thread_home")


def perturbed(backbone, heads):
    """A suite whose fine-tunes are the pretrained model with a little noise: nothing here asks how good they are."""
    suite = fl.load_suite(backbone, list(heads), tuning="none", heads=heads, device="cpu")
    torch.manual_seed(0)
    noisy = {
        task: {n: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t for n, t in suite.pretrained.items()}
        for task in heads
    }
    return replace(suite, finetuned=MappingProxyType(noisy))


@pytest.fixture
def texts():
    torch.manual_seed(1)
    return perturbed("tiny-gpt2", {"reviews": torch.randn(2, 128), "question": torch.randn(6, 128)})


@pytest.fixture
def scenes():
    decoders = {task: tiny_nyu().start_head(embedded_task(task), 0) for task in ("segmentation", "depth")}
    return perturbed("tiny-nyu", {task: decoder.state_dict() for task, decoder in decoders.items()})


def test_all_methods_apply_to_texts(texts):
    given = FEW | {"weighted_average": {"weights": [1.0, 2.0]}}
    tuned = {"task_arithmetic": {"scale": [0.3, 0.4]}}
    records, without = fl.run_every(texts, limit=4, settings=given, tuned=tuned, choice_limit=4)
    assert [record.method for record in records] == [n for n in methods.names() if n != "weighted_ensemble"]
    assert without == {"weighted_ensemble": "needs a value for 'weights', which has no default."}
    chosen = {record.method: record for record in records}
    assert chosen["task_arithmetic"].selected_on == "val" and chosen["simple_average"].selected_on is None
    assert chosen["weighted_average"].hyperparameters["weights"] == [1.0, 2.0]
    assert {record.limit for record in records} == {4}


def test_what_is_not_defined_for_maps_says_why(scenes):
    records, without = fl.run_every(scenes, limit=2, settings=FEW)
    merged = {"model_recombination", "regmean", "simple_average", "simple_ensemble", "task_arithmetic", "ties_merging"}
    assert {record.method for record in records} == merged
    assert without.keys() == set(methods.names()) - merged
    assert "which depths and normals have not" in without["max_model_predictor"]
    assert "no dense MLP" in without["we_moe"] and "have none" in without["layer_wise_adamerging"]
    with pytest.raises(NotApplicable, match="the mean of what its members say"):
        fl.run("simple_ensemble", scenes, limit=2, average="probabilities")


def test_a_misspelt_method_is_named(scenes):
    with pytest.raises(UnknownName, match="Did you mean 'ties_merging'"):
        fl.run_every(scenes, settings={"ties_mergin": {}})
