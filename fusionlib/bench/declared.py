"""What a chapter's parameters cell declares: defaults, and beside them what other values may be.

A parameter may say what it allows in quotes where Python has its type: ``points: "int >= 2" = 4``. The words are

* ``int``, ``float``, ``str``, ``bool``, ``None``, and ``str('a', 'b')`` for one of several texts;
* ``0 < float <= 1`` for a range; a bound may be another parameter of the cell;
* ``list[int]`` for a list with at least one entry and none twice; what is in it may have a range: ``list[int >= 0]``;
* ``tuple[str, int]``, ``dict[str, int]``, and ``dict(steps=int, lr=float > 0)`` for a mapping with just these keys;
* ``(int >= 1) | None`` for either of two.

The grid reads this before a kernel starts and ``fl.check_parameters`` in the kernel, both by ``refusal``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from fusionlib.core import ParameterError, suggest
from fusionlib.ops.constraints import Above, AtLeast, AtMost, Below, Distinct
from fusionlib.ops.values import bind, shown

_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
# what an operator says of the type to its left; to its right, it says the reverse
_LEFT = {ast.Lt: Below, ast.LtE: AtMost, ast.Gt: Above, ast.GtE: AtLeast}
_RIGHT = {ast.Lt: Above, ast.LtE: AtLeast, ast.Gt: Below, ast.GtE: AtMost}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell.

    Attributes:
        default: its value there.
        allowed: what is declared in quotes; None if nothing is.
    """

    default: Any
    allowed: str | None = None


def parameters(source: str, where: str) -> dict[str, Parameter]:
    """What a parameters cell assigns, in its order.

    Args:
        source: the cell; every statement must be ``name = literal`` or ``name: "what is allowed" = literal``.
        where: named in errors.
    Raises: ParameterError, with the line, if a statement is anything else, or if a default is not allowed itself.
    """
    found: dict[str, Parameter] = {}
    try:
        for statement in ast.parse(source).body:
            allowed = None
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    pass
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                        allowed = annotation.value
                case _:
                    raise _not_literal(where, statement.lineno, source)
            try:
                found[name] = Parameter(ast.literal_eval(value), allowed)
            except ValueError:
                raise _not_literal(where, statement.lineno, source) from None
    except SyntaxError as error:
        raise ParameterError(
            f"{where}: line {error.lineno} of the parameters cell is not Python: {error.msg}."
        ) from None
    defaults = {name: parameter.default for name, parameter in found.items()}
    for name in found:
        wrong = refusal(name, defaults, found)
        if wrong:
            raise ParameterError(f"{where}: the parameters cell refuses its own default: {wrong}")
    return found


def refusal(name: str, values: Mapping[str, Any], declared: Mapping[str, Parameter]) -> str | None:
    """Why a value is not allowed, as a finished sentence; None if it is, or if nothing was declared.

    Args:
        name: of the parameter.
        values: those of all parameters, which bounds may refer to.
        declared: the parameters cell.
    """
    allowed = declared[name].allowed
    if allowed is None:
        return None
    try:
        tree = ast.parse(allowed.strip(), mode="eval").body
        _check(name, values[name], _annotation(tree, values))
    except (SyntaxError, _Unreadable):
        return (
            f"the declaration of {name}, {allowed!r}, can't be read; see fusionlib.bench.declared for what it may say."
        )
    except ParameterError as error:
        return str(error)
    return None


class _Unreadable(Exception):
    """A declaration that is none."""


@dataclass(frozen=True)
class _Mapping:
    """What ``bind`` has no word for: a mapping from any names to values of one kind."""

    of: Any


@dataclass(frozen=True)
class _Record:
    """A mapping with just these names, each with what it allows."""

    of: dict[str, Any]


def _check(name: str, value: Any, annotation: Any) -> None:
    if not isinstance(annotation, (_Mapping, _Record)):
        bind(annotation, value, name)
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        keys = f"with {', '.join(annotation.of)}" if isinstance(annotation, _Record) else "from names"
        raise ParameterError(f"{name} = {shown(value)} is not allowed; it must be a mapping {keys}.")
    if isinstance(annotation, _Record):
        for key in value:
            if key not in annotation.of:
                raise ParameterError(f"{name} has a key {key!r} that is not known.{suggest(key, annotation.of)}")
        for key in annotation.of:
            if key not in value:
                raise ParameterError(f"{name} = {shown(value)} lacks {key!r}; add it.")
    for key, item in value.items():
        _check(f"{name}[{key!r}]", item, annotation.of[key] if isinstance(annotation, _Record) else annotation.of)


def _annotation(tree: ast.expr, values: Mapping[str, Any]) -> Any:
    """What ``bind`` understands, of what is written in quotes."""
    match tree:
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.Call(func=ast.Name(id="str"), args=choices, keywords=[]) if choices and all(map(_is_text, choices)):
            return Literal[*(ast.literal_eval(choice) for choice in choices)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_annotation(left, values), _annotation(right, values)]  # noqa: UP007 - made at run time
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return Annotated[list[_annotation(item, values)], Distinct()]
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            return tuple[*(_annotation(item, values) for item in items)]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[ast.Name(id="str"), item])):
            return _Mapping(_annotation(item, values))
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=items) if items and all(item.arg for item in items):
            return _Record({str(item.arg): _annotation(item.value, values) for item in items})
        case ast.Compare(left=left, ops=ops, comparators=right):
            return _range([left, *right], ops, values)
    raise _Unreadable


def _range(operands: list[ast.expr], ops: list[ast.cmpop], values: Mapping[str, Any]) -> Any:
    kinds = [index for index, item in enumerate(operands) if isinstance(item, ast.Name) and item.id in ("int", "float")]
    if len(kinds) != 1 or len(operands) > 3 or (len(operands) == 3 and kinds != [1]):
        raise _Unreadable
    (place,) = kinds
    constraints = []
    for index, op in enumerate(ops):
        meanings, other = (_LEFT, index + 1) if index == place else (_RIGHT, index)
        if type(op) not in meanings:
            raise _Unreadable
        bound = _bound(operands[other], values)
        if bound is not None:
            constraints.append(meanings[type(op)](bound))
    kind = _TYPES[operands[place].id]  # type: ignore[attr-defined]
    return Annotated[kind, *constraints] if constraints else kind


def _bound(tree: ast.expr, values: Mapping[str, Any]) -> float | None:
    """A number, or that of another parameter; None where that one is wrong itself, which is said of it alone."""
    if isinstance(tree, ast.Name):
        if tree.id not in values:
            raise _Unreadable
        value = values[tree.id]
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    try:
        value = ast.literal_eval(tree)
    except ValueError:
        raise _Unreadable from None
    if not isinstance(value, (int, float)):
        raise _Unreadable
    return value


def _is_text(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Constant) and isinstance(tree.value, str)


def _not_literal(where: str, line: int, source: str) -> ParameterError:
    text = source.splitlines()[line - 1].strip()
    return ParameterError(
        f"{where}: line {line} of the parameters cell, {text!r}, is not `name = literal`. "
        "Only numbers, strings, None, True, False and lists or mappings of them can be parameters."
    )
