"""What a fusion is given: a defect planted into a random model is named; healthy models give what a loop gives."""

import collections
import math
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fusionlib import methods, testing
from fusionlib.core import FusionError, KeyMismatch, NotApplicable, ParameterError
from fusionlib.ops import statedict
from fusionlib.ops.statedict import apply, task_vector

WEIGHTS = [name for name in methods.names() if methods.get(name).card.takes == "weights"]
MODELS = [name for name in methods.names() if methods.get(name).card.takes == "models"]
VARIANTS = [*((name, {}) for name in WEIGHTS), ("ties_merging", {"trim": "tensor"})]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def fuse(name, pretrained, finetuned, **more):
    method = methods.get(name)
    return method.fuse(pretrained, finetuned, **{**testing.hyperparameters(method, len(finetuned)), **more})


def fake(tensor):
    with FakeTensorMode():
        return torch.zeros(tensor.shape)


# what stands under a key in one model -> the words of the error
DEFECTS = {
    "NaN": (lambda t: torch.full_like(t, math.nan), "NaN or Inf"),
    "infinite": (lambda t: torch.full_like(t, -math.inf), "NaN or Inf"),
    "float8": (lambda t: t.float().to(torch.float8_e4m3fn), "merge before quantising"),
    "packed": (lambda t: torch.zeros(t.shape, dtype=torch.uint8).view(torch.bits8), "merge before quantising"),
    "int8": (lambda t: torch.ones(t.shape, dtype=torch.int8), "floating point and the other not"),
    "complex": (lambda t: torch.complex(t.float(), t.float()), "floating point and the other not"),
    "sparse": (lambda t: t.float().to_sparse(), "to_dense"),
    "meta": (lambda t: t.to("meta"), "materialise"),
    "fake": (fake, "a form of its own"),
    "uninitialised": (lambda t: nn.parameter.UninitializedParameter(), "run the model once"),
    "shape": (lambda t: torch.zeros(7), "has shape"),
    "None": (lambda t: None, "no tensor"),
    "number": (lambda t: 1.0, "no tensor"),
    "array": (lambda t: t.float().numpy(), "no tensor"),
    "list": (lambda t: t.tolist(), "no tensor"),
}


@st.composite
def states(draw):
    """A random pretrained state dict with one ordinary matrix, ``weight``."""
    names = draw(st.lists(st.text("abc.0", min_size=1, max_size=6), unique=True, max_size=5))
    state = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        state[name] = torch.randn(shape).to(draw(st.sampled_from(DTYPES)))
    state["weight"] = torch.randn(4, 3).to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        state["num_batches_tracked"] = torch.tensor(draw(st.integers(0, 9)))
    if draw(st.booleans()):
        state["seen"] = torch.rand(4) > 0.5
    if draw(st.booleans()):
        state["mask"] = torch.full((3, 3), -math.inf).triu(1)
    order = draw(st.permutations(list(state)))
    return {name: state[name] for name in order}


def tuned(state, by):
    moved = {}
    for index, (name, value) in enumerate(state.items()):
        if name == "num_batches_tracked":
            moved[name] = value + by
        elif value.is_floating_point() and name != "mask":
            moved[name] = (value.double() + math.sin(by + index)).to(value.dtype)
        else:
            moved[name] = value.clone()
    return moved


@pytest.mark.parametrize("defect", DEFECTS)
@settings(max_examples=8, deadline=None)
@given(state=states(), data=st.data())
def test_one_defect_is_named(defect, state, data):
    make, words = DEFECTS[defect]
    name, more = data.draw(st.sampled_from(VARIANTS))
    models = [state, *(tuned(state, by) for by in (1, 2, 3))]
    odd = data.draw(st.integers(0, 3))
    key = data.draw(st.sampled_from([k for k, v in state.items() if v.is_floating_point() and v.numel() > 1]))
    models[odd][key] = make(models[odd][key])
    with pytest.raises(FusionError) as caught:
        fuse(name, models[0], models[1:], **more)
    said = str(caught.value)
    assert repr(key) in said
    if odd:
        assert f"finetuned[{odd - 1}]" in said and words in said


@settings(max_examples=40, deadline=None)
@given(state=states(), others=st.lists(st.sampled_from(DTYPES), min_size=3, max_size=3), data=st.data())
def test_healthy_models_give_what_a_loop_gives(state, others, data):
    models = [
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in tuned(state, by).items()}
        for by, dtype in enumerate(others)
    ]
    before = [{k: v.clone() for k, v in model.items()} for model in models]
    wrap = data.draw(st.sampled_from([dict, collections.OrderedDict, types.MappingProxyType, collections.UserDict]))
    hold = data.draw(st.sampled_from([list, tuple, lambda given: dict(enumerate(given)).values()]))
    mean = fuse("simple_average", wrap(state), hold([wrap(m) for m in models]))
    moved = fuse("task_arithmetic", wrap(state), hold([wrap(m) for m in models]), scale=0.5)
    trimmed = [fuse("ties_merging", wrap(state), hold([wrap(m) for m in models]), trim=t) for t in ("global", "tensor")]
    for key, base in state.items():
        close = {"rtol": 1e-2, "atol": 2e-2} if base.dtype in DTYPES[:2] else {"rtol": 1e-4, "atol": 1e-4}
        if not base.is_floating_point() or key == "mask":
            assert all(torch.equal(fused[key], base) for fused in (mean, moved, *trimmed))
            continue
        rows = torch.stack([model[key].double() for model in models])
        torch.testing.assert_close(mean[key].double(), rows.mean(dim=0), **close)
        torch.testing.assert_close(
            moved[key].double(), base.double() + 0.5 * (rows - base.double()).sum(dim=0), **close
        )
        assert all(fused[key].shape == base.shape and fused[key].dtype == base.dtype for fused in trimmed)
    for model, copy in zip(models, before, strict=True):
        assert all(torch.equal(model[key], value) for key, value in copy.items())


def gen(items):
    yield from items


CONTAINERS = {
    "a module for the pretrained state": (lambda b, f: (nn.Linear(1, 1), f), r"pass model\.state_dict\(\)"),
    "modules for states": (lambda b, f: (b, [nn.Linear(1, 1)]), r"finetuned\[0\] is a module.*state_dict\(\)"),
    "a list of modules": (lambda b, f: (b, nn.ModuleList([nn.Linear(1, 1)])), "pass a list of state dicts"),
    "one state": (lambda b, f: (b, f[0]), r"one state dict; pass a list.*\[finetuned\]"),
    "a dict of states": (lambda b, f: (b, {"one": f[0]}), r"list\(finetuned\.values\(\)\)"),
    "a generator": (lambda b, f: (b, gen(f)), r"once only.*list\(finetuned\)"),
    "a map": (lambda b, f: (b, map(dict, f)), r"once only.*list\(finetuned\)"),
    "a set": (lambda b, f: (b, {1, 2}), "in their order"),
    "None": (lambda b, f: (b, None), "pass a list of state dicts"),
    "text": (lambda b, f: (b, "folder"), "'folder'; pass a list.*fl.merge"),
    "texts": (lambda b, f: (b, ["folder"]), r"finetuned\[0\] is 'folder'.*fl.merge"),
    "no models": (lambda b, f: (b, []), "`finetuned` is empty"),
    "None among models": (lambda b, f: (b, [f[0], None]), r"finetuned\[1\] is of type NoneType"),
    "pairs": (lambda b, f: (b, [list(f[0].items())]), r"finetuned\[0\] is of type list"),
    "no entries": (lambda b, f: ({}, [{}]), "empty state dict"),
    "numbers for names": (lambda b, f: ({**b, 1: torch.ones(2)}, f), "key 1, of type int"),
    "whole numbers alone": (lambda b, f: ({"a": torch.arange(3)}, [{"a": torch.arange(3)}]), "merge before quantising"),
    "complex alone": (lambda b, f: ({"a": torch.ones(2) * 1j}, [{"a": torch.ones(2) * 1j}]), "view_as_real"),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("what", CONTAINERS)
def test_what_is_no_list_of_state_dicts(name, what):
    make, words = CONTAINERS[what]
    pretrained, finetuned = make(*testing.tiny_models())
    method, sized = methods.get(name), hasattr(finetuned, "__len__")
    with pytest.raises(ParameterError, match=words):
        method.fuse(pretrained, finetuned, **testing.hyperparameters(method, len(finetuned) if sized else 3))


def test_entries_that_are_not_fused_must_agree():
    base = {"w": torch.ones(2), "codes": torch.tensor([1, 2], dtype=torch.int8), "waves": torch.tensor([1j, 2j])}
    same = {name: value.clone() for name, value in base.items()}
    assert torch.equal(fuse("simple_average", base, [same])["waves"], base["waves"])
    with pytest.raises(KeyMismatch, match=r"finetuned\[1\] has other numbers of torch.int8 under 'codes'.*quantising"):
        fuse("simple_average", base, [same, {**same, "codes": base["codes"] + 1}])
    with pytest.raises(NotApplicable, match=r"finetuned\[0\] has other complex numbers under 'waves'.*view_as_real"):
        fuse("ties_merging", base, [{**same, "waves": base["waves"] * 2}])


def test_counters_and_indices_are_the_pretrained_ones():
    base = {"w": torch.ones(2), "steps": torch.tensor([3]), "position_ids": torch.arange(4)}
    other = {"w": torch.ones(2), "steps": torch.tensor([9]), "position_ids": torch.arange(4) + 1}
    fused = fuse("simple_average", base, [other])
    assert fused["steps"] == 3 and torch.equal(fused["position_ids"], torch.arange(4))


def test_masks_of_other_types_agree_where_their_values_do():
    base = {"w": torch.zeros(2), "attn.bias": torch.ones(3, 3, dtype=torch.uint8).tril()}
    other = {"w": torch.ones(2), "attn.bias": torch.ones(3, 3, dtype=torch.bool).tril()}
    assert fuse("simple_average", base, [other])["attn.bias"].dtype == torch.uint8
    with pytest.raises(KeyMismatch, match=r"'attn\.bias'"):
        fuse("simple_average", base, [{**other, "attn.bias": torch.ones(3, 3, dtype=torch.bool)}])


class Marked(torch.Tensor):
    """A subclass that changes nothing about its numbers."""


def test_parameters_graphs_views_and_subclasses_are_tensors():
    base = {"w": nn.Parameter(torch.zeros(2, 3)), "e": torch.zeros(1).expand(3)}
    hanging = {"w": torch.ones(2, 3).requires_grad_() * 2, "e": torch.ones(1).expand(3)}
    turned = {"w": torch.ones(3, 2).T, "e": torch.ones(3, 2)[:, 0].as_subclass(Marked)}
    for name, more in VARIANTS:
        fused = fuse(name, base, [hanging, turned], **more)
        assert not any(value.requires_grad for value in fused.values())
    mean = fuse("simple_average", base, [hanging, turned])
    assert torch.equal(mean["w"], torch.full((2, 3), 1.5)) and torch.equal(mean["e"], torch.ones(3))
    assert not task_vector(hanging, base).delta["w"].requires_grad


def test_a_matrix_that_lies_across_memory_is_copied_once(monkeypatch):
    copies = []
    flat = statedict.torch.Tensor.reshape
    monkeypatch.setattr(statedict.torch.Tensor, "reshape", lambda self, *s: copies.append(1) or flat(self, *s))
    monkeypatch.setattr("fusionlib.ops.streaming.CPU_BLOCK", 4)
    base, other = {"w": torch.zeros(20, 30).T}, {"w": torch.ones(20, 30).T}
    assert torch.equal(fuse("simple_average", base, [other])["w"], other["w"])
    assert len(copies) == 2


def test_task_vectors_of_constants_and_broken_models():
    base = {"w": torch.zeros(2), "mask": torch.tensor([0.0, -math.inf])}
    moved = apply(base, 2 * task_vector({"w": torch.ones(2), "mask": base["mask"].clone()}, base))
    assert torch.equal(moved["w"], torch.full((2,), 2.0)) and torch.equal(moved["mask"], base["mask"])
    with pytest.raises(FusionError, match="the fine-tuned model has 1 of 2 values that are NaN or Inf under 'w'"):
        task_vector({"w": torch.tensor([1.0, math.nan]), "mask": base["mask"]}, base)
    with pytest.raises(FusionError, match="the sum with the task vector has 2 of 2"):
        apply({"w": torch.full((2,), 3e38)}, statedict.TaskVector({"w": torch.full((2,), 3e38)}))
    with pytest.raises(KeyMismatch, match=r"shape \(1,\) under 'w'"):
        apply({"w": torch.zeros(2)}, statedict.TaskVector({"w": torch.zeros(1)}))


@pytest.mark.parametrize("name", [name for name in MODELS if methods.get(name).card.fuses == "finetuned"])
def test_what_is_no_list_of_modules(name):
    method = methods.get(name)
    mix = method.card.kind == "mix"
    make = testing.tiny_transformer if mix else testing.tiny_model
    more = testing.hyperparameters(method, 2)
    if method.card.needs:
        more["data"] = (testing.tiny_pictures if mix else testing.tiny_data)(2)
    base, members = make(0), [make(1), make(2)]
    for wrong, words in (
        (members[0], "one module"),
        ({"one": members[0]}, r"list\(finetuned\.values\(\)\)"),
        (gen(members), r"list\(finetuned\)"),
        (None, "pass a list of modules"),
        ([members[0].state_dict()] * 2, r"finetuned\[0\] is a state dict.*load_state_dict"),
        (["folder"] * 2, r"finetuned\[0\] is of type str"),
    ):
        with pytest.raises(ParameterError, match=words):
            method.fuse(base, wrong, **more)
    if method.card.kind != "ensemble":
        with pytest.raises(ParameterError, match="the pretrained model is a state dict"):
            method.fuse(base.state_dict(), members, **more)
    if method.card.needs:
        with pytest.raises(ParameterError, match="data is of type NoneType"):
            method.fuse(base, members, **{**more, "data": None})
    method.fuse(base, nn.ModuleList(members), **more)
    assert all(isinstance(member, nn.Module) for member in members)
