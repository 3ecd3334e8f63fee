"""Where the tensors of an adapter belong: in the model, in a part of it, or in parts that the model has not."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, KeyMismatch, StateDict

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Place:
    """Where the modules of an adapter are.

    Attributes:
        module: with the names that the adapter has for them.
        top: the names of its parts.
        config: of the model, from transformers, if it has one.
    """

    module: nn.Module
    top: frozenset[str]
    config: Any = field(repr=False, default=None)


def find_place(model: nn.Module, found: StateDict, folder: Path, base: str) -> Place:
    """The model itself, a part of it, or a shell around it: whichever has most of the adapter's modules."""
    keys = [name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)]
    children = dict(model.named_children())
    config = getattr(model, "config", None)
    own = _prefixes(model)
    best = (_depth(keys, own), Place(model, frozenset(own), config))
    for name in dict.fromkeys(key.partition(".")[0] for key in keys):
        depth = _depth([key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")], own)
        if name not in children and depth > best[0]:
            shell = nn.Module()
            shell.add_module(name, model)
            best = (depth, Place(shell, frozenset([name]), config))
    for child in children.values():
        depth = _depth(keys, parts := _prefixes(child))
        if depth > best[0]:
            best = (depth, Place(child, frozenset(parts), config))
    if best[0] == 0:
        raise CheckpointError(
            f"the adapter in {folder} does not fit {base}: none of its modules ({', '.join(list(found)[:3])}, ...) are "
            "there. Check that it was trained on this model."
        )
    return best[1]


def _prefixes(model: nn.Module) -> dict[str, Any]:
    """The names of all modules, as nested dicts; parameters of the model itself among them."""
    tree: dict[str, Any] = {}
    for name in [*(name for name, _ in model.named_modules()), *dict(model.named_parameters(recurse=False))]:
        node = tree
        for part in name.split(".") if name else ():
            node = node.setdefault(part, {})
    return tree


def _depth(keys: list[str], tree: dict[str, Any]) -> int:
    """How far the names lead into a tree, in all."""
    steps = 0
    for key in keys:
        node = tree
        for part in key.split("."):
            if part not in node:
                break
            node, steps = node[part], steps + 1
    return steps


def divide(place: Place, config: Any, found: StateDict, folder: Path, base: str) -> tuple[StateDict, StateDict]:
    """Tensors for the model, under the file's names, and those for other parts, which must be known parts."""
    inside: StateDict = {}
    beside: StateDict = {}
    for name, tensor in found.items():
        plain = name.removeprefix(PREFIX)
        if plain == name or plain.partition(".")[0] in place.top:
            inside[name] = tensor
        else:
            beside[plain] = tensor
    known = _neighbours(place.config) if beside else frozenset()
    odd = [
        name
        for name in beside
        if not (is_saved(config, name) or (name.partition(".")[0] in known and _is_asked(config, name)))
    ]
    if odd:
        raise mismatch(folder, base, {"unexpected": [PREFIX + name for name in odd]})
    if not inside:
        raise KeyMismatch(
            f"the adapter in {folder} changes nothing of {base}: all its tensors are for other parts "
            f"({', '.join(list(beside)[:3])}, ...). Check that it was trained on this model."
        )
    return inside, beside


def is_saved(config: Any, name: str) -> bool:
    """Whether a tensor is of a module that was trained as a whole."""
    saved = tuple(getattr(config, "modules_to_save", None) or ())
    return any(part.endswith(saved) for part in parents(name))


def _is_asked(config: Any, name: str) -> bool:
    """Whether the configuration asks for a tensor of this name, wherever its module is."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if getattr(config, "bias", "none") == "all" and name.endswith(".bias"):
        return True
    if not config.target_modules:
        return False
    return any(check_target_module_exists(config, part) for part in parents(name))


def parents(name: str) -> list[str]:
    """The modules a tensor lies in, from the outermost."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _neighbours(config: Any) -> frozenset[str]:
    """The parts that models with a backbone of this configuration have, of all that transformers has."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.auto_factory import _LazyAutoMapping

    kind = getattr(config, "model_type", "")
    configs = [config]
    whole = kind.removesuffix("_vision_model").removesuffix("_text_model")
    if whole != kind and whole in CONFIG_MAPPING:
        configs.append(CONFIG_MAPPING[whole]())
    names: set[str] = set()
    for each in configs:
        classes: set[Any] = set()
        for mapping in vars(modeling_auto).values():
            if isinstance(mapping, _LazyAutoMapping) and type(each) in mapping:
                entry = mapping[type(each)]
                classes.update(entry if isinstance(entry, tuple) else [entry])
        for cls in classes:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                names.update(name for name, _ in cls(copy.deepcopy(each)).named_children())
    return frozenset(names)


def mismatch(folder: Path, base: str, faults: dict[str, list[str]]) -> KeyMismatch:
    """The error for an adapter whose tensors are not those it should hold: kind of fault -> names."""
    parts = [
        f"{title}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for title, names in faults.items()
        if names
    ]
    return KeyMismatch(
        f"the adapter in {folder} does not fit {base}. {'. '.join(parts)}. It must hold exactly the tensors that its "
        "adapter_config.json asks of the model it was trained on: check that this is the model, and that both files "
        "belong together."
    )
