"""What a hyper-parameter may be, written in the signature of ``fuse``, and the one reader that holds values to it.

``density: Annotated[float, Above(0), AtMost(1)] = 0.2`` is the whole declaration. ``checked`` reads it when ``fuse`` is
called; recipes, the command line, chapters and records read it through ``bind``. What was checked is what is used:
numbers of NumPy and tensors of no dimension become Python's, one-dimensional arrays and tensors become lists.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from fusionlib.core import ParameterError
from fusionlib.ops.constraints import (
    Distinct,
    OnePerModel,
    describe,
    describe_one,
    holds,
    interval,
    options_of,
    parts_of,
)

P = ParamSpec("P")
R = TypeVar("R")

_MOST_BITS = 10_000  # Python writes integers of no more than 4300 digits, and a record has to write them


def checked(fuse: Callable[P, R]) -> Callable[P, R]:
    """A ``fuse`` that receives its hyper-parameters as its signature says, or raises ParameterError."""

    @functools.wraps(fuse)
    def bound(*args: P.args, **given: P.kwargs) -> R:
        models: Any = args[1] if len(args) > 1 else given.get("finetuned")
        count = len(models) if _is_list(models) else None
        known = allowed(fuse)
        read: dict[str, Any] = {
            name: bind(known[name], value, name, num_models=count) if name in known else value
            for name, value in given.items()
        }
        return fuse(*args, **read)

    return bound


@functools.cache
def allowed(fuse: Callable[..., Any]) -> Mapping[str, Any]:
    """Hyper-parameter -> annotation; ``Any`` for one that has none, or none that can be read."""
    inner = inspect.unwrap(fuse)
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(inner).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "data":
            found[name] = Any if parameter.annotation is inspect.Parameter.empty else _hint(inner, parameter.annotation)
    return found


def bind(annotation: Any, value: Any, name: str, *, num_models: int | None = None) -> Any:
    """The value as its annotation says: a plain Python number, text, bool or None, a list or a tuple.

    Args:
        annotation: bool, int, float, str, None, a ``Literal``, a ``Sequence``, list or tuple of such, or a union of
            them, each perhaps ``Annotated`` with what this file defines. Anything else allows every value.
        value: Python's, NumPy's, or a tensor on any device. No text is taken for a number, and no number for a bool.
        name: of the parameter, for errors.
        num_models: how many entries a list with ``OnePerModel`` has; None where that is not known yet.
    Raises: ParameterError, with name and value, and with what is allowed.
    """
    options = options_of(annotation)
    plain = _plain(value)
    fitting = next((option for option in options if _is_of_kind(option, plain)), None)
    if fitting is not None:
        if _origin(fitting) not in _KINDS and _origin(fitting) is not Literal and isinstance(plain, list):
            return value  # an annotation that is not understood may well mean an array
        return _read(fitting, plain, name, num_models)
    for option in options:
        if get_origin(option) is Literal and isinstance(get_args(option)[0], str):
            raise ParameterError(f"{name} = {shown(value)} is not known; allowed: {describe(annotation)}.")
    raise ParameterError(
        f"{name} = {shown(value)} is not allowed; it must be {describe(annotation)}.{_meant(options, plain)}"
    )


def shown(value: Any) -> str:
    """A value for an error sentence, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # what has no text form must not hide the sentence that it is for
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _hint(function: Callable[..., Any], annotation: Any) -> Any:
    stub = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(stub, getattr(function, "__globals__", {}), include_extras=True)["it"]
    except Exception:  # a name that only type checkers import, in a method of the user's own
        return Any


def _origin(option: Any) -> Any:
    kind, _ = parts_of(option)
    return get_origin(kind) or kind


def _plain(value: Any) -> Any:
    """A bool or number instead of NumPy's and of a tensor of no dimension, a list instead of other arrays."""
    dtype, ndim = getattr(value, "dtype", None), getattr(value, "ndim", None)
    if dtype is None or not isinstance(ndim, int) or isinstance(value, str):
        return value
    kind = getattr(dtype, "kind", "tensor")
    convert: Callable[[Any], Any] | None
    if ndim:
        convert = None if kind in ("m", "M") else lambda array: array.tolist()
    else:
        convert = {"b": bool, "i": int, "u": int, "f": float}.get(kind)
        convert = (lambda scalar: scalar.item()) if kind in ("tensor", "O") else convert
    try:
        return value if convert is None else convert(value)
    except Exception:  # such as a tensor without data; the sentence that follows shows what it is
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and not hasattr(value, "dtype")


def _is_number(value: Any) -> bool:
    number = isinstance(value, numbers.Number) and not isinstance(value, bool) and not hasattr(value, "dtype")
    return number and (isinstance(value, numbers.Real) or not isinstance(value, numbers.Complex))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_of_kind(option: Any, value: Any) -> bool:
    """Whether the value is of the right kind, its size and range aside."""
    origin = _origin(option)
    if origin is Literal:
        return any(_is_of_kind(type(choice), value) and choice == value for choice in get_args(parts_of(option)[0]))
    return _KINDS[origin](value) if origin in _KINDS else True


_KINDS: dict[Any, Callable[[Any], bool]] = {
    bool: lambda given: isinstance(given, bool),
    int: _is_whole,
    float: _is_number,
    str: lambda given: isinstance(given, str),
    type(None): lambda given: given is None,
    None: lambda given: given is None,
    Sequence: _is_list,
    list: _is_list,
    tuple: _is_list,
}


def _read(option: Any, value: Any, name: str, num_models: int | None) -> Any:
    kind, constraints = parts_of(option)
    origin = get_origin(kind) or kind
    if origin is Literal:
        return next(choice for choice in get_args(kind) if choice == value)
    if origin is int:
        return _read_whole(int(value), constraints, name)
    if origin is float:
        return _read_number(value, constraints, name)
    if origin is str:
        return str(value)
    if origin in (Sequence, list, tuple):
        return _read_list(option, value, name, num_models)
    return value


def _read_whole(value: int, constraints: tuple[Any, ...], name: str) -> int:
    if value.bit_length() > _MOST_BITS:
        raise ParameterError(f"{name} has more digits than can be written down; use a smaller integer.")
    if not holds(value, constraints):
        raise ParameterError(
            f"{name} = {shown(value)} is not allowed; it must be {describe_one(Annotated[int, *constraints])}."
        )
    return value


def _read_number(value: Any, constraints: tuple[Any, ...], name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ParameterError(f"{name} = {shown(value)} is too large for a number; use a smaller one.") from None
    except (ValueError, TypeError):
        number = math.nan
    infinite = math.isinf(number) and any(math.isinf(getattr(c, "high", 0)) for c in constraints)
    if not math.isfinite(number) and not infinite:
        raise ParameterError(f"{name} = {shown(value)} is not a finite number; use one that is.")
    if not holds(number, constraints):
        raise ParameterError(f"{name} = {shown(value)} is out of range; allowed: {interval(constraints)}.")
    return number


def _read_list(option: Any, values: Sequence[Any], name: str, num_models: int | None) -> Any:
    kind, constraints = parts_of(option)
    elements = get_args(kind)
    fixed = get_origin(kind) is tuple and Ellipsis not in elements
    if fixed and len(values) != len(elements):
        raise ParameterError(f"{name} = {shown(values)} is not allowed; it must be {describe_one(option)}.")
    if OnePerModel() in constraints and num_models and len(values) != num_models:
        raise ParameterError(
            f"{name} has {len(values)} numbers for {num_models} fine-tuned models; give one per model, in order."
        )
    each = elements if fixed else [elements[0] if elements else Any] * len(values)
    read = [
        bind(element, value, f"{name}[{index}]", num_models=num_models)
        for index, (element, value) in enumerate(zip(each, values, strict=True))
    ]
    if Distinct() in constraints and (not read or any(value in read[:index] for index, value in enumerate(read))):
        what = "is empty; give at least one entry" if not read else "holds an entry twice; list each once"
        raise ParameterError(f"{name} = {shown(values)} {what}.")
    return tuple(read) if get_origin(kind) is tuple else read


def _meant(options: list[Any], value: Any) -> str:
    """What was probably meant, where that can be told and is allowed: what stands in quotes, or 3 for 3.0."""
    for guess in _guesses(value):
        for option in options:
            if _is_of_kind(option, guess):
                try:
                    written = repr(_read(option, guess, "", None))
                except ParameterError:
                    continue
                # YAML 1.1, which papermill reads, takes an exponent without a point for text
                written = written.replace("e-", ".0e-") if "." not in written else written
                return f" It is text: write {written}." if isinstance(value, str) else f" Write {written}."
    return ""


def _guesses(value: Any) -> list[bool | int | float]:
    if isinstance(value, float):
        return [int(value)] if value.is_integer() else []
    if not isinstance(value, str) or len(value) > 30:
        return []
    text = value.strip()
    if text.lower() in ("true", "false"):
        return [text.lower() == "true"]
    guesses: list[bool | int | float] = []
    for convert in (int, float):
        try:
            guesses.append(convert(text))
        except ValueError:
            continue
    return guesses
