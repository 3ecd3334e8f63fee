"""Every law of ``fusionlib.testing`` over every method in the folder: a new method is covered with no edit."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from fusionlib import methods, testing
from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError, UnknownName

WEIGHTS = [name for name in methods.names() if methods.get(name).card.takes == "weights"]


@pytest.mark.parametrize(
    ("name", "law"),
    [(name, law) for name in methods.names() for law in testing.laws_of(methods.get(name))],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_law(name, law):
    law(methods.get(name))


def test_check_laws_names_what_it_checked():
    assert "copies_of_pretrained_change_nothing" in testing.check_laws("task_arithmetic")


def test_a_law_that_does_not_hold_is_found():
    class Broken:
        card = methods.get("simple_average").card

        @staticmethod
        def fuse(pretrained, finetuned):
            return {key: value + 1 for key, value in methods.get("simple_average").fuse(pretrained, finetuned).items()}

    broken = Broken()
    with pytest.raises(AssertionError):
        testing.laws.copies_of_pretrained_change_nothing(broken)
    with pytest.raises(AssertionError):
        testing.laws.one_model_alone_comes_back(broken)
    with pytest.raises(AssertionError):
        testing.laws.keeps_keys_shapes_and_dtypes(broken)


@pytest.mark.parametrize("name", methods.names())
def test_card_tells_the_truth(name):
    card, fuse = methods.get(name).card, methods.get(name).fuse
    assert card.name == name
    parameters = inspect.signature(fuse).parameters
    assert list(parameters)[:2] == ["pretrained", "finetuned"]
    extra = [p for p in list(parameters.values())[2:]]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in extra)
    for mapping in (card.identity or {}, card.grid):
        assert set(mapping) <= {p.name for p in extra}, f"{name}: the card names an unknown hyper-parameter"
    docs = inspect.getdoc(fuse) or ""
    assert "Source:" in docs and "Deviates:" in docs


@pytest.mark.parametrize("name", methods.names())
def test_citation_exists(name):
    bibliography = Path(__file__).parents[1] / "book" / "references.bib"
    keys = set(re.findall(r"@\w+\{([^,]+),", bibliography.read_text(encoding="utf-8")))
    assert methods.get(name).card.cite in keys


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["pretrained", 0, 2])
def test_non_finite_input_is_named(name, bad, where):
    pretrained, finetuned = testing.tiny_models()
    (pretrained if where == "pretrained" else finetuned[where])["3.weight"][1, 2] = bad
    wanted = "the pretrained model" if where == "pretrained" else rf"finetuned\[{where}\]"
    with pytest.raises(NonFiniteError, match=rf"{wanted} has 1 of 20 values .* under '3.weight'"):
        methods.get(name).fuse(pretrained, finetuned, **testing.hyperparameters(methods.get(name), 3))


@pytest.mark.parametrize("name", WEIGHTS)
def test_mismatches_are_named(name):
    method = methods.get(name)
    given = testing.hyperparameters(method, 3)

    def message(change) -> str:
        pretrained, finetuned = testing.tiny_models()
        change(finetuned[1])
        with pytest.raises(KeyMismatch) as caught:
            method.fuse(pretrained, finetuned, **given)
        return str(caught.value)

    assert "finetuned[1] lacks 1 of 9 keys" in message(lambda state: state.pop("0.bias"))
    assert "finetuned[1] has besides 1 of 9" in message(lambda state: state.update(head=torch.zeros(2)))
    text = message(lambda state: state.update({"0.bias": torch.zeros(6)}))
    assert "(6,)" in text and "(5,)" in text and "'0.bias'" in text
    assert "floating point" in message(lambda state: state.update({"0.bias": torch.zeros(5, dtype=torch.int64)}))


@pytest.mark.parametrize("name", methods.names())
def test_nothing_to_fuse(name):
    method = methods.get(name)
    given = testing.hyperparameters(method, 0)
    if method.card.needs:
        given["data"] = testing.tiny_data(0)
    pretrained = testing.tiny_model()
    first = pretrained.state_dict() if method.card.takes == "weights" else pretrained
    with pytest.raises(ParameterError):
        method.fuse(first, [], **given)


def test_unknown_method_names_the_close_match():
    with pytest.raises(UnknownName, match="Did you mean 'ties_merging'"):
        methods.get("ties_mergin")
