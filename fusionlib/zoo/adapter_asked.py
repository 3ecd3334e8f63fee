"""Which tensors an adapter's configuration asks for, and which parts a model may have beside the one at hand."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch

from fusionlib.core import CheckpointError, StateDict

PREFIX = "base_model.model."


def is_saved(config: Any, name: str) -> bool:
    """Whether a tensor is of a module that was trained as a whole."""
    saved = tuple(getattr(config, "modules_to_save", None) or ())
    return any(part.endswith(saved) for part in parents(name))


def is_asked(config: Any, name: str) -> bool:
    """Whether the configuration asks for a tensor of this name, wherever its module is."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if getattr(config, "bias", "none") == "all" and name.endswith(".bias"):
        return True
    if not config.target_modules:
        return False
    return any(check_target_module_exists(config, part) for part in parents(name))


def parents(name: str) -> list[str]:
    """The modules that hold a tensor of this name, from the outermost inwards."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def neighbours(config: Any) -> frozenset[str]:
    """The parts that models with a backbone of this configuration have, of all that transformers has."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    kind = getattr(config, "model_type", "")
    configs = [config]
    whole = kind.removesuffix("_vision_model").removesuffix("_text_model")
    if whole != kind and whole in CONFIG_MAPPING:
        configs.append(CONFIG_MAPPING[whole]())
    names: set[str] = set()
    for each in configs:
        classes: set[Any] = set()
        for mapping in vars(modeling_auto).values():
            if isinstance(mapping, modeling_auto._LazyAutoMapping) and type(each) in mapping:
                entry = mapping[type(each)]
                classes.update(entry if isinstance(entry, tuple) else [entry])
        for cls in classes:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                names.update(name for name, _ in cls(copy.deepcopy(each)).named_children())
    return frozenset(names)


def check_patterns(config: Any, inside: StateDict, folder: Path) -> None:
    """PEFT passes over a rank or an alpha for modules that are not there."""
    holders = {part for name in inside for part in parents(name.removeprefix(PREFIX))}
    for title in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, title, None) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", part) for part in holders):
                raise CheckpointError(
                    f"the adapter in {folder} has an entry {pattern!r} of {title} for modules of which it holds no "
                    "tensors. Its adapter_config.json belongs to another adapter, or the name is misspelt."
                )
