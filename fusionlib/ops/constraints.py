"""What a hyper-parameter may be: the constraints that stand in signatures, whether they hold, and how they are said."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Above:
    """Greater than ``low``."""

    low: float


@dataclass(frozen=True)
class AtLeast:
    """``low`` or greater."""

    low: float


@dataclass(frozen=True)
class Below:
    """Less than ``high``."""

    high: float


@dataclass(frozen=True)
class AtMost:
    """``high`` or less. Numbers are finite, except where this is infinity."""

    high: float


@dataclass(frozen=True)
class OnePerModel:
    """A list with one entry for each fine-tuned model, in their order."""


@dataclass(frozen=True)
class Distinct:
    """A list of at least one entry, in which none stands twice."""


@dataclass(frozen=True)
class Says:
    """What errors call a value that is more easily shown than described."""

    text: str


Count = Annotated[int, AtLeast(1)]
Whole = Annotated[int, AtLeast(0)]
Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
PerModel = Annotated[Sequence[float], OnePerModel()]
Interval = Annotated[tuple[float, float], Says("(low, high), such as (0, 1)")]
Layers = Sequence[Annotated[int, Says("an index")] | Annotated[tuple[int, int], Says("a range (start, stop)")]]


def describe(annotation: Any) -> str:
    """What an annotation allows, to go on after "must be": "an integer, 1 or greater"."""
    parts = [describe_one(option) for option in options_of(annotation)]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def options_of(annotation: Any) -> list[Any]:
    """The kinds that an annotation allows: the members of a union, else itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in options_of(member)]
    return [annotation]


def parts_of(option: Any) -> tuple[Any, tuple[Any, ...]]:
    """(the type, what it was annotated with)."""
    if get_origin(option) is Annotated:
        kind, *more = get_args(option)
        return kind, tuple(more)
    return option, ()


def holds(value: float, constraints: tuple[Any, ...]) -> bool:
    """Whether a number lies in the range of the constraints."""
    for constraint in constraints:
        match constraint:
            case Above(low=low) if not value > low:
                return False
            case AtLeast(low=low) if not value >= low:
                return False
            case Below(high=high) if not value < high:
                return False
            case AtMost(high=high) if not value <= high:
                return False
    return True


def interval(constraints: tuple[Any, ...]) -> str:
    """The range of the constraints as mathematicians write it, "(0, 1]"."""
    low, high = "(-inf", "inf)"
    for constraint in constraints:
        match constraint:
            case Above(low=bound):
                low = f"({bound:g}"
            case AtLeast(low=bound):
                low = f"[{bound:g}"
            case Below(high=bound):
                high = f"{bound:g})"
            case AtMost(high=bound):
                high = f"{bound:g}]"
    return f"{low}, {high}"


def describe_one(option: Any) -> str:
    """As ``describe``, of one kind that is no union."""
    kind, constraints = parts_of(option)
    origin = get_origin(kind) or kind
    said = [constraint.text for constraint in constraints if isinstance(constraint, Says)]
    if said:
        return said[0]
    if origin is Literal:
        choices = [repr(choice) for choice in get_args(kind)]
        text = isinstance(get_args(kind)[0], str)
        return ", ".join(choices) if text or len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    if origin is int:
        return f"an integer{_bounds(constraints)}"
    if origin is float:
        return "a number" + (f" in {interval(constraints)}" if constraints else "")
    if origin in (Sequence, list, tuple):
        if OnePerModel() in constraints:
            return "a list with one number per fine-tuned model"
        elements = get_args(kind)
        if get_origin(kind) is tuple and Ellipsis not in elements:
            return f"a list of {len(elements)}: {', '.join(describe(element) for element in elements)}"
        return f"a list in which every element is {describe(elements[0])}" if elements else "a list"
    return {bool: "True or False", str: "text", type(None): "None", None: "None"}.get(origin, "anything")


def _bounds(constraints: tuple[Any, ...]) -> str:
    text = ""
    for constraint in constraints:
        match constraint:
            case AtLeast(low=low):
                text += f", {low:g} or greater"
            case AtMost(high=high):
                text += f", {high:g} or less"
            case Above() | Below():
                text += f", in {interval((constraint,))}"
    return text
