"""Reading YAML that people write: 1e-3 is a number, a key stands once, and what is wrong is said with its line.

YAML 1.1, which PyYAML reads, takes 1e-3 for text, 1:30 for 90, 010 for 8 and 2024-01-01 for a date. Here numbers are
what they are in YAML 1.2 and in Python, and all else is text; yes, no, on and off are still true and false.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fusionlib.core import ParameterError

_DEEPEST, _MOST = 20, 100_000
_TAG = "tag:yaml.org,2002:"
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|0x[0-9a-fA-F]+|0o[0-7]+",
    "float": rf"(?=.*[.eE])[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2; without dates, sets, bytes and whatever else has a tag."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.removeprefix(_TAG) in ("bool", "null", "merge")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), list("-+.0123456789"))
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "str", "seq", "map", "float")
}


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


_Loader.add_constructor(_TAG + "int", _whole)


def load_file(path: Path) -> tuple[Any, dict[str, int]]:
    """What a file holds, and on which line each key of its outermost mapping stands.

    Raises: ParameterError, if it cannot be read as UTF-8, and as :func:`load`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ParameterError(f"{path} cannot be read: it is not UTF-8. Save it in that encoding.") from None
    except (OSError, ValueError) as error:  # a ValueError comes from a NUL in the path
        raise ParameterError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return load(text, path.name)


def load(text: str, where: str) -> tuple[Any, dict[str, int]]:
    """What a YAML text holds, and on which line each key of its outermost mapping stands.

    Args:
        where: what the text is called in errors, the name of its file.
    Returns: None, numbers, text, booleans, and lists and mappings (with text as keys) of them; and the lines.
    Raises: ParameterError, with the line, if the text is not YAML, if a key of any mapping stands there twice or is no
        text, if there is a tag, or if lists and mappings are nested too deeply.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check(node, where)
        lines = _lines(node)
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}" if mark else "the file"
        raise ParameterError(f"{where}: {place} is not YAML: {error.problem or error.context}.") from None
    except ParameterError:
        raise
    except (yaml.YAMLError, ValueError, KeyError) as error:  # the last two come from a number or a !!bool that is none
        raise ParameterError(f"{where} is not YAML: {str(error).splitlines()[0].rstrip('.')}.") from None
    except RecursionError:
        raise ParameterError(f"{where}: lists and mappings are nested too deeply; at most {_DEEPEST} are.") from None
    finally:
        if loader is not None:
            loader.dispose()
    return value, lines


def _lines(node: yaml.Node | None) -> dict[str, int]:
    return {key.value: key.start_mark.line + 1 for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {}


def _check(root: yaml.Node | None, where: str) -> None:
    """Refuses what has no place in such a file, before anything is made of it."""
    waiting = [] if root is None else [(root, 1)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        line = f"{where}, line {node.start_mark.line + 1}"
        if depth > _DEEPEST or seen > _MOST:  # an alias may stand inside of what it names, or multiply without end
            raise ParameterError(f"{line}: lists and mappings are nested too deeply; at most {_DEEPEST} are.")
        if node.tag not in _Loader.yaml_constructors and node.tag != _TAG + "merge":
            raise ParameterError(f"{line}: the tag {node.tag.replace(_TAG, '!!')} has no meaning here; leave it out.")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            waiting += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "of a list or mapping"
            raise ParameterError(f"{where}, line {line}: the key {shown} is not a name; put it in quotes.")
        if key.value in lines:
            both = f"line {lines[key.value]} and on line {line}" if line != lines[key.value] else f"line {line}, twice"
            raise ParameterError(f"{where}: {key.value!r} is set on {both}; keep one of them.")
        lines[key.value] = line
