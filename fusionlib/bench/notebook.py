"""Two helpers that only make sense in a notebook: numbers for prose, and a guard against misspelt parameters."""

from __future__ import annotations

import ast
import itertools
import re
from typing import Any

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
    """Refuses a parameter that papermill passed and the chapter does not have; elsewhere does nothing.

    papermill itself only warns, and a misspelt parameter would run the defaults.

    Raises: ParameterError, naming the close match.
    """
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    cells = [] if shell is None else [source for source in shell.user_ns.get("In", []) if source.strip()]
    for own, injected in itertools.pairwise(cells):
        if injected.startswith("# Parameters"):
            declared, given = _assigned(own), _assigned(injected)
            for name in given:
                if name not in declared:
                    hint = nested(name) or suggest(name, declared)
                    raise ParameterError(f"this chapter has no parameter {name!r}.{hint}")


def nested(key: str) -> str:
    """Where what is meant belongs, for keys of ``load_suite`` that are no parameters; empty for others."""
    own = {"checkpoints": "checkpoint", "heads": "head"}.get(key)
    return f" Write it with its task: `tasks: {{name: {{data: ..., {own}: ...}}}}`." if own else ""


def _assigned(source: str) -> list[str]:
    nodes = (node for statement in ast.parse(source).body for node in ast.walk(statement))
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
