"""Values of every hyper-parameter of every method, made from its signature: a new method is tried by itself."""

from __future__ import annotations

import decimal
import fractions
import inspect
import itertools
import json
import math
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlib import methods
from fusionlib.bench import records
from fusionlib.bench.hyperparameters import complete
from fusionlib.core import ParameterError
from fusionlib.methods import task_wise_adamerging, ties_merging, weighted_average
from fusionlib.ops.constraints import Above, AtLeast, AtMost, Below, Count, PerModel
from fusionlib.ops.values import allowed, bind, checked
from fusionlib.testing import assert_same_weights, hyperparameters, tiny_data, tiny_model, tiny_models

EVERY = [(name, key) for name in methods.names() for key in allowed(methods.get(name).fuse)]
MODELS = 3
FLOATS = [float, np.float64, np.float32, np.float16, np.array, torch.tensor, np.longdouble, decimal.Decimal]
WHOLE = [int, np.int64, np.int8, np.uint16, np.array, torch.tensor]


def parts(annotation: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(annotation) is Annotated:
        kind, *constraints = typing.get_args(annotation)
        return kind, constraints
    return annotation, []


def limits(constraints: list[Any]) -> tuple[float, float]:
    """Bounds inside of which everything is allowed."""
    low = max([c.low for c in constraints if isinstance(c, (Above, AtLeast))], default=-4)
    high = min([c.high for c in constraints if isinstance(c, (Below, AtMost))], default=low + 4)
    return low, high


def good(annotation: Any) -> st.SearchStrategy[tuple[Any, Any]]:
    """(what is given, the plain Python value that it means)."""
    kind, constraints = parts(annotation)
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    low, high = limits(constraints)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(good, arguments))
    if origin is Literal:
        return st.sampled_from(arguments).flatmap(lambda v: st.sampled_from([(v, v), (plain_kind(v), v)]))
    if origin is type(None):
        return st.just((None, None))
    if origin is bool:
        wrapped = st.sampled_from([bool, np.bool_, np.array, torch.tensor])
        return st.tuples(wrapped, st.booleans()).map(lambda pair: (pair[0](pair[1]), pair[1]))
    if origin is int:
        small = st.tuples(st.sampled_from(WHOLE), st.integers(math.ceil(max(low, 0)), math.floor(min(high, 100))))
        return small.map(lambda pair: (pair[0](pair[1]), pair[1])) | st.just((10**30, 10**30))
    if origin is float:
        # eighths are exact in half precision too
        eighths = st.integers(math.floor(low * 8) + 1, math.ceil(min(high, 1e3) * 8) - 1).map(lambda n: n / 8)
        several = st.tuples(st.sampled_from(FLOATS), eighths).map(lambda pair: (pair[0](pair[1]), pair[1]))
        return several | several.filter(lambda pair: pair[1].is_integer()).map(lambda p: (int(p[1]), p[1]))
    if origin is tuple:
        return st.tuples(*map(good, arguments)).map(lambda ps: ([p[0] for p in ps], tuple(p[1] for p in ps)))
    assert origin is Sequence, annotation
    each = st.lists(good(arguments[0]), min_size=MODELS, max_size=MODELS)
    lists = each.map(lambda pairs: ([pair[0] for pair in pairs], [pair[1] for pair in pairs]))
    if parts(arguments[0])[0] is not float:
        return lists
    arrays = st.sampled_from([tuple, np.array, torch.tensor])
    return lists | st.tuples(arrays, lists).map(lambda pair: (pair[0](pair[1][1]), pair[1][1]))


def plain_kind(value: Any) -> Any:
    return np.str_(value) if isinstance(value, str) else np.array(value)


NEVER = [
    "0.3",
    "1e-3",
    "123",
    "False",
    "",
    "letters",
    b"0.3",
    bytearray(b"123"),
    1j,
    np.complex64(1),
    torch.tensor(1j),
    math.nan,
    math.inf,
    -math.inf,
    np.float32("nan"),
    torch.tensor(math.inf),
    decimal.Decimal("NaN"),
    {},
    {"a": 1},
    {1.0, 2.0},
    object(),
    float,
    lambda: 1,
    iter([1.0, 2.0, 3.0]),
    np.array("0.3"),
    np.datetime64("2024-01-01"),
    np.timedelta64(3, "s"),
    torch.tensor(1.0, device="meta"),
    torch.tensor([1.0, 2.0, 3.0], device="meta"),
    [["0.1"], ["0.2"], ["0.3"]],
    ["0.1", "0.2", "0.3"],
    [None] * MODELS,
    [math.nan] * MODELS,
    [True] * MODELS,
    [1j] * MODELS,
    np.array(["a", "b", "c"]),
    tiny_model(),
]


def bad(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that the annotation does not allow; all of ``NEVER``, and some that depend on it."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else [annotation]
    kinds = [parts(option) for option in options]
    more: list[Any] = []
    if type(None) not in [kind for kind, _ in kinds]:
        more.append(None)
    if bool not in [kind for kind, _ in kinds]:
        more += [True, False, np.bool_(True), torch.tensor(False)]
    if not any(typing.get_origin(kind) in (Sequence, tuple) for kind, _ in kinds):
        more += [[0.5], (1, 2), np.array([0.5]), torch.ones(1), []]
    for kind, constraints in kinds:
        if kind is int:
            more += [0.5, 3.0, np.float32(2), fractions.Fraction(3, 1), 10**5000]
        if kind is float:
            more += [10**400, -(10**400)]
        if kind is bool:
            more += [0, 1, 0.0, np.int64(1), torch.tensor(1)]
        if typing.get_origin(kind) in (Sequence, tuple) and parts(typing.get_args(kind)[0])[0] is float:
            more += [[1.0], [1.0] * (MODELS + 1), torch.ones(2, 2), "123", range(7)]
        for constraint in constraints:
            match constraint:
                case Above(low=low):
                    more += [low, low - 1, np.float32(low), torch.tensor(low)]
                case AtLeast(low=low):
                    more += [low - 1, np.array(low - 1)]
                case Below(high=high):
                    more += [high, high + 1]
                case AtMost(high=high):
                    more += [high + 1, np.float16(high + 1)]
    return st.sampled_from([*NEVER, *more])


UNIONS = (typing.Union, types.UnionType)


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right and repr(left) == repr(right)


@pytest.mark.parametrize(("name", "key"), EVERY)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_good_values_become_plain_python_values(name, key, data):
    method = methods.get(name)
    value, plain = data.draw(good(allowed(method.fuse)[key]))
    read = bind(allowed(method.fuse)[key], value, key, num_models=MODELS)
    assert same(read, plain)
    whole = complete(name, {**hyperparameters(method, MODELS), key: value})
    assert same(whole[key], plain) and json.loads(json.dumps(whole)) == records.json_value(whole)


@pytest.mark.parametrize(("name", "key"), EVERY)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_bad_values_are_refused_before_anything_else(name, key, data):
    method = methods.get(name)
    value = data.draw(bad(allowed(method.fuse)[key]))
    with pytest.raises(ParameterError, match=key):
        method.fuse(None, [None] * MODELS, **{**hyperparameters(method, MODELS), key: value})


def test_every_hyperparameter_says_what_it_may_be():
    for name in methods.names():
        fuse = methods.get(name).fuse
        assert inspect.unwrap(fuse) is not fuse, f"{name}.fuse is not @checked"
        for key, annotation in allowed(fuse).items():
            assert annotation is not Any, f"{name}: {key} has no annotation"
        shown = inspect.signature(fuse).parameters
        assert all(str(p.annotation) != "float" or isinstance(p.default, float) for p in shown.values())


def test_what_was_checked_is_what_is_used():
    """np.float16(0.25) is a quarter, and so is a tensor's."""
    models = [tiny_model(seed) for seed in (0, 1, 2)]
    given = {"data": tiny_data(2), "steps": 2, "batch_size": 8}
    for lr in (np.float16(0.25), torch.tensor(0.25, dtype=torch.bfloat16), np.array(0.25)):
        found = task_wise_adamerging.fuse(models[0], models[1:], lr=lr, clamp=np.array([0, 1]), **given)
        wanted = task_wise_adamerging.fuse(models[0], models[1:], lr=0.25, clamp=(0, 1), **given)
        assert_same_weights(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    pretrained, finetuned = tiny_models()
    found = weighted_average.fuse(pretrained, finetuned, weights=np.array([1, 2, 3]), normalize=np.bool_(True))
    assert_same_weights(found, weighted_average.fuse(pretrained, finetuned, weights=[1, 2, 3]), rtol=0, atol=0)


def test_one_question_has_one_spelling():
    spellings = [1, 1.0, np.float32(1), np.int8(1), torch.tensor(1), torch.tensor(1.0), fractions.Fraction(1)]
    assert {json.dumps(complete("ties_merging", {"scale": value})) for value in spellings} == {
        '{"density": 0.2, "scale": 1.0, "trim": "global", "combine": "mean", "zero_sign": "majority"}'
    }


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (float, "1e-3", "it must be a number. It is text: write 0.001."),
        (float, "1e-5", "It is text: write 1.0e-05."),
        (
            float | PerModel,
            "0.3",
            "it must be a number or a list with one number per fine-tuned model. It is text: write",
        ),
        (float, "20%", "it = '20%' is not allowed; it must be a number."),
        (bool, "false", "it must be True or False. It is text: write False."),
        (Count, 3.0, "it must be an integer, 1 or greater. Write 3."),
        (Count, "3", "It is text: write 3."),
        (Count, "0", "it = '0' is not allowed; it must be an integer, 1 or greater."),
        (Annotated[float, Above(0), AtMost(1)], 2, "it = 2 is out of range; allowed: (0, 1]."),
        (Annotated[float, Above(0)], 0, "it = 0 is out of range; allowed: (0, inf)."),
        (Literal["a", "b"], "c", "it = 'c' is not known; allowed: 'a', 'b'."),
        (Literal["a", "b"], ["a"], "it = ['a'] is not known"),
        (Literal[0, 1, 2], 3, "it must be 0, 1 or 2."),
        (PerModel, [1, "2", 3], "it[1] = '2' is not allowed; it must be a number. It is text: write 2.0."),
        (PerModel, [1, 2], "it has 2 numbers for 3 fine-tuned models; give one per model, in order."),
        (int, 10**5000, "it has more digits than can be written down"),
        (float, 10**400, "is too large for a number"),
        (float, "x" * 500, "(502 characters)"),
    ],
    ids=itertools.count(),
)
def test_errors_end_with_what_to_do(annotation, value, message):
    with pytest.raises(ParameterError) as error:
        bind(annotation, value, "it", num_models=3)
    assert message in str(error.value) and str(error.value).endswith(".")


def test_infinity_only_where_a_range_includes_it():
    assert bind(Annotated[float, AtMost(math.inf)], math.inf, "it") == math.inf
    with pytest.raises(ParameterError, match="not a finite number"):
        bind(Annotated[float, AtMost(math.inf)], math.nan, "it")


def test_a_method_of_ones_own_is_read_by_its_annotations():
    @checked
    def fuse(pretrained, finetuned=(), *, data=None, low: float = None, free=1.0, odd: Unknown = 1, n: int = 2):  # noqa: F821, RUF013
        """Own."""
        return low, free, odd, n

    own = types.SimpleNamespace(card=ties_merging.card, fuse=fuse)
    assert complete(own, {}) == {"low": None, "free": 1.0, "odd": 1, "n": 2}
    assert same(complete(own, {"low": None, "free": 2, "n": np.int8(3)}), {"low": None, "free": 2.0, "odd": 1, "n": 3})
    assert fuse(None, [], n=torch.tensor(4), odd="x") == (None, 1.0, "x", 4)
    tensor = torch.ones(2)
    assert fuse(None, free=tensor)[1] is tensor
    assert fuse.__doc__ == "Own." and list(inspect.signature(fuse).parameters)[-1] == "n"
    with pytest.raises(ParameterError, match=r"n = 2\.5"):
        fuse(None, [], n=2.5)
    with pytest.raises(TypeError, match="unexpected keyword"):
        fuse(None, [], m=2)
