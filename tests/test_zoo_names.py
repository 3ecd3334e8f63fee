"""Wrong names and values are refused in full sentences, before anything is loaded or made."""

import pytest
import torch

import fusionlib as fl
from fusionlib.core import ParameterError, UnknownName
from fusionlib.zoo import names, preparing


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tasks": "tiny9"}, UnknownName, "no set of tasks is called 'tiny9'. Did you mean 'tiny8'"),
        ({"tasks": ["mnist", "fashon"]}, UnknownName, "no task is called 'fashon'. Did you mean 'fashion'"),
        ({"tasks": "mnist"}, UnknownName, r"'mnist' is a single task.*write \['mnist'\]"),
        ({"tasks": []}, ParameterError, "needs at least one task"),
        ({"tasks": ["mnist", "mnist"]}, ParameterError, "listed more than once: mnist"),
        ({"tuning": "l-lora", "checkpoints": {"mnist": "x"}}, ParameterError, "l-lora.*is for the embedded"),
        ({"tuning": "l-lora", "multitask": True}, ParameterError, "jointly trained model has no adapter"),
        (
            {"tuning": "l-lora", "backbone": "tiny-gpt2", "tasks": "tiny-text7"},
            ParameterError,
            "no recipe for 'l-lora'",
        ),
        ({"tasks": "svhn"}, UnknownName, r"'svhn' is a single task.*write \['svhn'\]"),
        ({"tasks": ["svhn", "svhn"]}, ParameterError, "listed more than once: svhn"),
        ({"tuning": "lra"}, ParameterError, "tuning='lra' is not a kind.*Did you mean 'lora'"),
        ({"seed": -1}, ParameterError, "seed=-1 must be an integer, 0 or greater"),
        ({"seed": True}, ParameterError, "seed=True must be"),
        ({"device": "gpu"}, ParameterError, "device='gpu' is not known.*auto, cpu, cuda"),
        ({"backbone": "tiny-clp"}, UnknownName, "'tiny-clp', is not a name in the zoo.*Did you mean 'tiny-clip'"),
        ({"heads": {"mnst": torch.ones(1)}}, ParameterError, "heads names 'mnst'.*Did you mean 'mnist'"),
        ({"checkpoints": {"mnst": "x"}}, ParameterError, "checkpoints names 'mnst'.*Did you mean 'mnist'"),
        ({"checkpoints": {"mnist": "x"}, "tuning": "none"}, ParameterError, "Leave out one of the two"),
        ({"checkpoints": {"mnist": "x"}, "multitask": True}, ParameterError, "multitask=True trains the embedded"),
        (
            {"tasks": ["mnist"], "heads": {"mnist": torch.ones(9, 384)}},
            ParameterError,
            r"shape \(9, 384\).*\(10, 384\)",
        ),
    ],
)
def test_load_suite_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        fl.load_suite(**{"device": "cpu", **arguments})


def test_prepare_refuses():
    with pytest.raises(UnknownName, match=r"no embedded backbone is called 'clip'.*Allowed: tiny-clip"):
        preparing.prepare("clip")
    with pytest.raises(ParameterError, match="seed='0'"):
        preparing.prepare(seed="0")


def test_a_list_that_is_a_named_set_has_its_name():
    assert names.resolve_tasks(list(names.SETS["tiny8"])) == (names.SETS["tiny8"], "tiny8")
    assert names.resolve_tasks(("letters", "mnist")) == (("letters", "mnist"), None)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert names.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ParameterError, match=r"sees no CUDA device. Use device='auto' or 'cpu'"):
        names.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert names.resolve_device("auto") == names.resolve_device("cuda") == torch.device("cuda")
    assert names.resolve_device("cpu") == torch.device("cpu")
