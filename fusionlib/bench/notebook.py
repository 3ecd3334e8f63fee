"""Two helpers that only make sense in a notebook: numbers for prose, and a guard against wrong parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionlib.bench.declared import parameters, refusal
from fusionlib.bench.shared_parameters import SHARED, impossible
from fusionlib.core import ParameterError, suggest

_PREFIX = "application/papermill.record/"


def glue(name: str, value: Any, fmt: str = "{}") -> None:
    """Keeps a value under a name, so that the prose can show it with the ``glue:text`` role; displays nothing.

    Args:
        fmt: how to write it, a format string: ``"{:.1f}"``.
    """
    from IPython.display import display

    text = fmt.format(value)
    if not isinstance(value, str):
        if re.fullmatch(r"[-+]0(\.0+)?%?", text):
            text = text[1:]  # what is rounded to nothing has no sign
        text = text.replace("-", "\N{MINUS SIGN}")
    # quoted, because the role evaluates what looks like a number and would drop a plus sign
    data = {f"{_PREFIX}text/plain": repr(text)}
    display(data, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": _PREFIX}})


def check_parameters() -> None:
    """Refuses parameters that the chapter does not have, or that are not what its parameters cell says.

    papermill itself only warns of the first, and knows nothing of the second. Where no notebook runs, nothing happens.

    Raises: ParameterError, with what is allowed; for a name that is not known, with the close match.
    """
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is None:
        return
    cells = [source for source in shell.user_ns.get("In", []) if source.strip()]
    for index, source in enumerate(cells):
        injected = cells[index + 1] if cells[index + 1 :] and cells[index + 1].startswith("# Parameters") else None
        names = _assigned(source)
        if injected is not None:
            for name in _assigned(injected):
                if name not in names:
                    hint = nested(name) or suggest(name, names)
                    raise ParameterError(f"this chapter has no parameter {name!r}.{hint}")
        if injected is not None or set(SHARED) <= set(names):
            _check_values(source, shell.user_ns)


def _check_values(cell: str, namespace: Mapping[str, Any]) -> None:
    """Holds the values that a notebook now has to what its parameters cell declares."""
    try:
        declared = parameters(cell, "this chapter")
    except ParameterError:  # an ordinary cell, in front of one that only begins like papermill's
        return
    values = {name: namespace[name] for name in declared if name in namespace}
    for name, value in values.items():
        wrong = impossible(name, value, Path.cwd()) if name in SHARED else refusal(name, values, declared)
        if wrong:
            raise ParameterError(wrong)


def nested(key: str) -> str:
    """Where what is meant belongs, for keys of ``load_suite`` that are no parameters; empty for others."""
    own = {"checkpoints": "checkpoint", "heads": "head"}.get(key)
    return f" Write it with its task: `tasks: {{name: {{data: ..., {own}: ...}}}}`." if own else ""


def _assigned(source: str) -> list[str]:
    try:
        nodes = [node for statement in ast.parse(source).body for node in ast.walk(statement)]
    except (SyntaxError, ValueError):  # a cell of IPython's own, such as %time, declares nothing
        return []
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
