"""``adapter_config.json`` of a PEFT adapter: read, checked, and refused where such an adapter can't be merged."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError, suggest

ADAPTER_CONFIG = "adapter_config.json"
_UNMERGEABLE = {"XLORA", "POLY", "LILY", "SHADOW"}  # what they add to a layer depends on the input
# settings that change what the model itself is or does, or name code to import
_REFUSED = {
    "megatron_config": "is for layers of Megatron",
    "layer_replication": "repeats layers of the pretrained model",
    "alora_invocation_tokens": "switches the adapter on in the middle of a text",
}
_ANY = (bool, int, float, str, list, dict, type(None))


def read_facts(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` as it is; CheckpointError, if it is no JSON object of finite numbers."""
    path = folder / ADAPTER_CONFIG
    try:
        facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} can't be read ({error}). Copy it again, or save the adapter again with save_pretrained."
        ) from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is not an adapter's configuration, a JSON object. Copy it again.")
    return facts


def read_adapter_config(folder: Path) -> Any:
    """The configuration of an adapter, a ``PeftConfig`` of its kind.

    Raises: CheckpointError, if it is malformed, or of a kind that can't be merged into weights.
    """
    path = folder / ADAPTER_CONFIG
    facts = read_facts(folder)
    cls = _class(facts.get("peft_type"), path)
    known = inspect.signature(cls.__init__).parameters
    _check(facts, cls, path)
    # a switch that this version of PEFT does not know, but that is on, would be left out of the merge in silence
    odd = [name for name, value in facts.items() if name not in known and value is True]
    if odd:
        raise CheckpointError(
            f"{path} sets {', '.join(odd)}, which this version of peft does not know: install a newer one (pip install "
            "-U peft), or merge the adapter where it was trained and give the whole model."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings of older versions
            config = cls(**{name: value for name, value in facts.items() if name in known})
            if config.is_prompt_learning:
                raise _refuse(facts["peft_type"], path)
    except CheckpointError:
        raise
    except Exception as error:  # each kind checks its settings in its own way
        raise CheckpointError(f"{path} is not a configuration that PEFT takes: {first_line(error)}") from error
    config.inference_mode = True
    return config


def check_adapter(folder: Path) -> None:
    """Raise CheckpointError, if the adapter in a folder is of a kind that can't be merged; only its JSON is read."""
    read_adapter_config(folder)


def other_base(folder: Path, pretrained: Any) -> str:
    """The model that an adapter says it was trained on, if that is not the one called ``pretrained``; else ""."""
    name = read_facts(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        return ""
    return "" if _short(name) == _short(str(pretrained)) else name


def _class(kind: Any, path: Path) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    classes: dict[str, Any] = {each.value: cls for each, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    tuners: dict[str, Any] = {each.value: cls for each, cls in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    able = [name for name in classes if issubclass(tuners[name], BaseTuner) and name not in _UNMERGEABLE]
    if not isinstance(kind, str) or kind not in classes:
        raise CheckpointError(
            f"{path} has the peft_type {kind!r}, which this version of peft does not know.{suggest(str(kind), able)}"
        )
    if kind not in able:
        raise _refuse(kind, path)
    return classes[kind]


def _refuse(kind: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"the adapter in {path.parent} is of kind {kind}, which has no change of weights that could be merged: it adds "
        "to what goes through the model. Merge LoRA adapters or whole fine-tunes; this one can only be used by PEFT."
    )


def _check(facts: Mapping[str, Any], cls: Any, path: Path) -> None:
    """The types of settings, which PEFT does not look at: the text "false" would switch something on."""
    for name, why in _REFUSED.items():
        if facts.get(name):
            raise CheckpointError(
                f"{path} sets {name}, which {why}: such an adapter can't be merged into the pretrained model."
            )
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):  # of a version of PEFT that names types it does not import
        hints = {}
    for name, value in facts.items():
        allowed = _types(hints[name]) if name in hints else _ANY
        if name.endswith("_pattern") and isinstance(value, dict):
            odd = [key for key, number in value.items() if isinstance(number, bool) or not _is_number(number)]
            if odd:
                raise CheckpointError(f"{path}: {name} must give a number for {odd[0]!r}, but gives {value[odd[0]]!r}.")
        if not _fits(value, allowed):
            wanted = " or ".join(sorted({kind.__name__.replace("NoneType", "null") for kind in allowed}))
            raise CheckpointError(f"{path}: {name} is {value!r}, but must be {wanted}. Copy the file again.")
        if name in ("target_modules", "modules_to_save", "exclude_modules"):
            _check_names(name, value, path)


def _check_names(name: str, value: Any, path: Path) -> None:
    if isinstance(value, list) and not all(isinstance(each, str) for each in value):
        raise CheckpointError(f"{path}: {name} must be names of modules, but holds {value!r}. Copy the file again.")
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise CheckpointError(f"{path}: {name} is {value!r}, no regular expression ({error}).") from None


def _types(hint: Any) -> tuple[type, ...]:
    """The types of JSON values that an annotation allows; all of them where it says nothing of the kind."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple({kind for part in typing.get_args(hint) for kind in _types(part)})
    if origin is typing.Literal:
        return tuple({type(value) for value in typing.get_args(hint)})
    plain = origin or hint
    if plain is set:
        return (list,)
    if isinstance(plain, type) and issubclass(plain, str):  # the enumerations of kinds and tasks, too
        return (str,)
    return (plain,) if plain in _ANY else _ANY


def _fits(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, (int, float)):  # PEFT itself writes alphas of either
        return int in allowed or float in allowed
    return isinstance(value, allowed) or value is None  # null is what a setting of another version looks like


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _short(name: str) -> str:
    """The last part of a path or hub id, and of the place where the hub's cache keeps it."""
    cached = re.search(r"models--(?:[^/\\]+--)?([^/\\]+)", name)
    return (cached[1] if cached else re.split(r"[/\\]", name.rstrip("/\\"))[-1]).partition("@")[0].casefold()


def first_line(error: Exception) -> str:
    """What a library says is wrong, without the rest of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no reason given'}"
