"""run: the question is asked once, its key holds everything that determines the answer, and the answer is right."""

import dataclasses
import logging
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from bench_helpers import TEST, VAL, at, toy_suite

import fusionlib as fl
from fusionlib.bench import questions
from fusionlib.core import ParameterError, UnknownName
from fusionlib.methods import simple_average, task_arithmetic
from fusionlib.ops.modules import predict

OWN = """
from fusionlib.core import MethodCard
card = MethodCard("{name}", "Mine", "x", "merge", version=3)
def fuse(pretrained, finetuned):
    return {{"threshold": pretrained["threshold"] + {value}}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))


@pytest.fixture
def calls(monkeypatch):
    """The hyper-parameters of every call of task arithmetic."""
    made, original = [], task_arithmetic.fuse

    def fuse(pretrained, finetuned, *, scale=0.3):
        made.append(scale)
        return original(pretrained, finetuned, scale=scale)

    monkeypatch.setattr(task_arithmetic, "fuse", fuse)
    return made


def test_a_record_by_hand():
    record = fl.run("task_arithmetic", toy_suite(), scale=0.5)  # threshold 4 * 0.5 = 2
    assert record.counts == {"a": (3, 4), "b": (4, 5)}
    assert (record.method, record.kind, record.needs, record.hyperparameters) == (
        "task_arithmetic",
        "merge",
        (),
        {"scale": 0.5},
    )
    assert (record.stored_parameters, record.active_parameters) == (1, 1)
    assert record.fusion_seconds > 0 and record.evaluation_seconds > 0
    assert record.provenance["suite"] == "f0" and record.provenance["method_version"] == 1
    assert record.provenance["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_an_ensemble_stores_and_reads_all_its_members():
    record = fl.run("simple_ensemble", toy_suite())
    assert (record.kind, record.stored_parameters, record.active_parameters) == ("ensemble", 2, 2)


def test_fuse_returns_the_model():
    suite = toy_suite()
    model = fl.fuse(simple_average, suite)
    assert not model.training and model.threshold.item() == 2.0
    batch = {"numbers": torch.tensor([1.0, 3.0])}
    assert predict(model, suite.heads["a"], batch).argmax(1).tolist() == [1, 0]


def test_the_second_run_reads_the_record(calls, caplog):
    with caplog.at_level(logging.INFO, "fusionlib"):
        first = fl.run("task_arithmetic", toy_suite())
        assert calls == [0.3] and not caplog.records
        second = fl.run(task_arithmetic, toy_suite(), scale=0.3)
    assert calls == [0.3] and second == first
    assert first.key in caplog.text and "task_arithmetic, test" in caplog.text


def test_another_home_has_other_records(calls, tmp_path, monkeypatch):
    first = fl.run("task_arithmetic", toy_suite())
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "elsewhere"))
    assert fl.records.read() == []
    assert fl.run("task_arithmetic", toy_suite()).key == first.key and len(calls) == 2
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    assert fl.run("task_arithmetic", toy_suite()) == first and len(calls) == 2


def spec(**changes):
    return toy_suite(spec=dataclasses.replace(toy_suite().spec, **changes), data={"test": TEST, "val": VAL})


def test_everything_that_determines_the_counts_is_in_the_key(monkeypatch):
    def key(method="ties_merging", suite=None, **options):
        return fl.run(method, suite or toy_suite(), **options).key

    keys = {
        "the question": key(),
        "method": key("simple_average"),
        "density": key(density=0.3),
        "scale": key(scale=1.1),
        "trim": key(trim="tensor"),
        "combine": key(combine="sum"),
        "zero_sign": key(zero_sign="positive"),
        "split": key(split="val"),
        "limit": key(limit=2),
        "chosen": key(selected_on="val"),
        "fingerprint": key(suite=toy_suite(fingerprint="f1")),
        "seed": key(suite=spec(seed=1)),
        "tuning": key(suite=spec(tuning="lora")),
        "backbone": key(suite=spec(backbone="other")),
        "tasks": key(suite=spec(tasks=("b", "a"))),
    }
    monkeypatch.setattr(questions, "versions", lambda: {"torch": "0"})
    keys["versions"] = key()
    monkeypatch.setattr(questions, "source_hash", lambda name: "edited")
    keys["source"] = key()
    assert len(set(keys.values())) == len(keys), keys


def test_what_does_not_matter_is_not_in_the_key():
    first = fl.run("ties_merging", toy_suite(), density=0.5, scale=1.0).key
    assert fl.run("ties_merging", toy_suite(), scale=1.0, density=0.5).key == first
    assert fl.run("ties_merging", toy_suite(), density=0.5).key == first, "a default written out"
    assert fl.run("ties_merging", toy_suite(), density=0.5, scale=1).key == first, "an integer for a float"
    assert fl.run("ties_merging", toy_suite(device=torch.device("cpu", 0)), density=0.5).key == first
    weighted = [fl.run("weighted_average", toy_suite(), weights=given).key for given in ((0.5, 0.5), [0.5, 0.5])]
    assert weighted[0] == weighted[1], "a tuple for a list"


def test_references_by_hand():
    found = fl.references(toy_suite(multitask=at(2.0)))
    assert [record.method for record in found] == ["pretrained", "finetuned", "multitask"]
    assert [record.kind for record in found] == ["reference"] * 3
    assert found[0].counts == {"a": (3, 4), "b": (2, 5)}
    assert found[1].counts == {"a": (4, 4), "b": (5, 5)}
    assert found[2].counts == {"a": (3, 4), "b": (4, 5)}
    # both fine-tunes changed their one tensor of one number
    assert [record.stored_parameters for record in found] == [1, 3, 1]
    assert fl.references(toy_suite(multitask=at(2.0))) == found


def test_unchanged_tensors_are_stored_once():
    finetuned = fl.references(toy_suite(finetuned={"a": at(0.0), "b": at(3.0)}))[1]
    assert (finetuned.stored_parameters, finetuned.active_parameters) == (2, 1)


def test_another_jointly_trained_model_is_another_record():
    one, other = (fl.references(toy_suite(multitask=at(threshold))) for threshold in (2.0, 4.0))
    assert [record.key for record in one[:2]] == [record.key for record in other[:2]]
    assert one[2].key != other[2].key
    assert other[2].counts == {"a": (2, 4), "b": (4, 5)}


def test_a_suite_without_fine_tunes():
    bare = toy_suite(finetuned={})
    assert [record.method for record in fl.references(bare)] == ["pretrained"]
    with pytest.raises(ParameterError, match="no fine-tuned models to fuse"):
        fl.run("simple_average", bare)


@pytest.mark.parametrize(
    ("method", "given", "error", "message"),
    [
        ("task_arithmetic", {"scael": 0.3}, ParameterError, r"no hyper-parameter 'scael'. Did you mean 'scale'\?"),
        ("simple_average", {"scale": 0.3}, ParameterError, r"no hyper-parameter 'scale'. Allowed: none"),
        ("weighted_average", {}, ParameterError, "needs a value for 'weights', which has no default"),
        ("task_aritmetic", {}, UnknownName, "Did you mean 'task_arithmetic'?"),
    ],
)
def test_mistakes_are_named(method, given, error, message):
    for call in (fl.run, fl.fuse):
        with pytest.raises(error, match=message):
            call(method, toy_suite(), **given)
    assert fl.records.read() == []


def own_module(folder, name, value, card_name=None):
    module = ModuleType(name)
    module.__file__ = str(folder / f"{name}.py")
    source = OWN.format(name=card_name or name, value=value)
    Path(module.__file__).write_text(source)
    exec(source, module.__dict__)
    return module


def test_a_method_of_the_users_own(tmp_path):
    record = fl.run(own_module(tmp_path, "my_method", 2.0), toy_suite())
    assert record.method == "my_method" and record.counts == {"a": (3, 4), "b": (4, 5)}
    assert record.provenance["method_version"] == 3
    edited = fl.run(own_module(tmp_path, "my_method", 40.0), toy_suite())
    assert edited.key != record.key and edited.counts == {"a": (2, 4), "b": (4, 5)}
    assert fl.records.read() == [] and len(fl.records.read(current=False)) == 2


def test_a_copy_of_a_method_does_not_read_its_records(tmp_path):
    fl.run("simple_average", toy_suite())
    copy = own_module(tmp_path, "my_average", 0.0, card_name="simple_average")
    assert fl.run(copy, toy_suite()).method == "my_average"
    with pytest.raises(ParameterError, match="'simple_average' is a name that fusionlib itself uses"):
        fl.run(own_module(tmp_path, "simple_average", 0.0), toy_suite())


def test_a_method_that_is_no_module():
    card = dataclasses.replace(simple_average.card, name="in_a_notebook")
    method = SimpleNamespace(card=card, fuse=lambda pretrained, finetuned: at(2.0))
    assert fl.run(method, toy_suite()).counts == {"a": (3, 4), "b": (4, 5)}
    with pytest.raises(ParameterError, match="source of 'in_a_notebook' can't be read"):
        fl.run(SimpleNamespace(card=card, fuse=eval("lambda pretrained, finetuned: None")), toy_suite())


def test_several_models_at_once_are_not_one_measurement():
    with pytest.raises(ParameterError, match="returned 2 models, and one can be measured"):
        fl.run("model_recombination", toy_suite(), return_all=True)


def test_what_was_measured_as_given_is_not_measured_again_when_it_was_chosen(monkeypatch):
    suite = toy_suite()
    given = fl.run("task_arithmetic", suite, scale=0.5)
    monkeypatch.setattr("fusionlib.bench.run.measure_all", lambda *_: pytest.fail("measured again"))
    chosen = fl.run("task_arithmetic", suite, scale=0.5, selected_on="val")
    assert (chosen.counts, chosen.selected_on, given.selected_on) == (given.counts, "val", None)
    assert chosen.key != given.key
    assert fl.run("task_arithmetic", suite, scale=0.5, selected_on="val") == chosen
