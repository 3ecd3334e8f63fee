"""``structure.json`` of a saved model: read, and checked before anything of it is used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError

STRUCTURE = "structure.json"
FORMAT = 1
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_MEMBER = re.compile(r"member-\d+")  # a folder of its own below the ensemble's, never a path
_FIELDS: dict[str, dict[str, type]] = {
    "single": {"architecture": str},
    "ensemble": {"architecture": str, "class": str, "given": dict, "members": list},
    "mixed": {"architecture": str, "dtype": str, "replaced": dict},
}


def read_structure(folder: Path) -> dict[str, Any]:
    """The structure of a saved model: its kind, and the fields that this kind has, of the right types.

    Raises: CheckpointError, naming what is missing, malformed or of another version.
    """
    path = folder / STRUCTURE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {STRUCTURE}; it was not written by fl.save, or not completely.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kind, version = found["kind"], found["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); save the model again.") from error
    if version != FORMAT or type(version) is not int or not isinstance(kind, str) or kind not in _FIELDS:
        raise CheckpointError(
            f"{path} has kind {kind!r}, format {version!r}, which this version does not know; update."
        )
    for name, wanted in _FIELDS[kind].items():
        if not isinstance(found.get(name), wanted):
            raise _wrong(path, name, found.get(name), f"a {wanted.__name__}")
    _check_options(path, found)
    if kind == "ensemble":
        _check_ensemble(path, found)
    if kind == "mixed":
        _check_mixed(path, found)
    return found


def _check_options(path: Path, found: Mapping[str, Any]) -> None:
    options = found.get("options", {})
    if not isinstance(options, dict) or any(
        name != "add_pooling_layer" or not isinstance(value, bool) for name, value in options.items()
    ):
        raise _wrong(path, "options", options, 'nothing but {"add_pooling_layer": false}')
    dtypes = found.get("dtypes", {})
    if not isinstance(dtypes, dict) or any(value not in _DTYPES for value in dtypes.values()):
        raise _wrong(path, "dtypes", dtypes, f"a name and one of {', '.join(_DTYPES)} for each weight")


def _check_ensemble(path: Path, found: Mapping[str, Any]) -> None:
    members, given = found["members"], found["given"]
    if not members or len({*map(str, members)}) < len(members):
        raise _wrong(path, "members", members, "a list of different folders")
    for name in members:
        if not isinstance(name, str) or not _MEMBER.fullmatch(name):
            raise _wrong(path, "members", name, "folders in the ensemble's own, such as member-0")
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise _wrong(path, "members", name, "folders in the ensemble's own, not links elsewhere")
    weights = given.get("weights")
    if weights is not None and (
        not isinstance(weights, list)
        or len(weights) != len(members)
        or not all(
            isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) for value in weights
        )
    ):
        raise _wrong(path, "weights", weights, "one number for each member")
    if not isinstance(given.get("center", False), bool):
        raise _wrong(path, "center", given["center"], "true or false")


def _check_mixed(path: Path, found: Mapping[str, Any]) -> None:
    if found["dtype"] not in _DTYPES:
        raise _wrong(path, "dtype", found["dtype"], f"one of {', '.join(_DTYPES)}")
    for name, part in found["replaced"].items():
        if not isinstance(part, dict) or not all(isinstance(part.get(key), str) for key in ("file", "class")):
            raise _wrong(path, f"replaced, {name}", part, "file and class of what stands there")


def _wrong(path: Path, name: str, value: Any, allowed: str) -> CheckpointError:
    shown = repr(value)
    shown = shown if len(shown) < 100 else f"{shown[:60]}..."
    return CheckpointError(f"{path} cannot be read: {name} is {shown}; it must be {allowed}. Save the model again.")
