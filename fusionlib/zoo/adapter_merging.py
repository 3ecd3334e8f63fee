"""PEFT adapters merged into a module: the one way, in which each tensor of the file is accounted for.

PEFT itself loads what fits and is silent about the rest. Here the file must hold exactly the tensors that its
configuration asks of the model; what belongs to parts that the model has not (the head of a classifier, the text
tower of a CLIP) is handed back, and anything else is an error.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, FusionError, NonFiniteError, StateDict
from fusionlib.zoo.adapter_config import first_line, other_base, read_adapter_config
from fusionlib.zoo.adapter_places import PREFIX, Place, divide, find_place, is_saved, mismatch, parents
from fusionlib.zoo.adapter_ties import tie_again, untie
from fusionlib.zoo.adapters import read_adapter, wrap
from fusionlib.zoo.backbone import Backbone

_BEFORE = ".original_module."  # a module as it was before it was trained as a whole; some versions of PEFT save it
_log = logging.getLogger("fusionlib")


def merge_into(model: nn.Module, folder: Path, base: str) -> StateDict:
    """Merge the adapter in a folder into a module, in place; what PEFT's ``merge_and_unload`` gives.

    Args:
        model: the pretrained model the adapter was trained on, or a part of it, or a model that holds it.
        folder: of the adapter.
        base: what the model is called, for messages.
    Returns: the adapter's tensors for parts that the model has not, under their names in the whole model.
    Raises: CheckpointError, KeyMismatch, NonFiniteError.
    """
    config = read_adapter_config(folder)
    found = read_adapter(folder)
    place = find_place(model, found, folder, base)
    inside, beside = divide(place, config, found, folder, base)
    ties = untie(place.module, {part for name in inside for part in parents(name.removeprefix(PREFIX))})
    with _of_peft(folder, base):
        if getattr(config, "modules_to_save", None):
            config.modules_to_save = _present(config, place.module)
        _resize_heads(place.module, config, inside)
        adapted = _wrapped(place, config, inside, folder, base)
        names = [name for name, module in place.module.named_modules() if hasattr(module, "base_layer")]
        adapted.merge_and_unload()
    _check_finite(place.module, names, folder)
    tie_again(place.module, ties, folder)
    model.eval()
    return beside


def merge_adapter(backbone: Backbone, folder: Path) -> StateDict:
    """The backbone's weights with the adapter in ``folder`` added, float32, under the backbone's own keys.

    Raises: as ``merge_into``.
    """
    model = backbone.build()
    say_about(folder, backbone.name, merge_into(model, folder, repr(backbone.name)))
    merged = model.state_dict()
    return {name: merged[name].detach().float() for name in backbone.state}


def say_about(folder: Path, base: str, beside: StateDict) -> None:
    """One line in the log for each thing about an adapter that a user may not expect."""
    trained_on = other_base(folder, base)
    if trained_on:
        _log.info("the adapter in %s says it was trained on %s; it is merged into %s", folder, trained_on, base)
    if beside:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in beside))
        _log.info("of the adapter in %s, %d tensors are left out: %s has no %s", folder, len(beside), base, parts)


def _present(config: Any, module: nn.Module) -> list[str] | None:
    """The modules to save that there are; those beside the model were handed back."""
    names = [name for name, _ in module.named_modules()]
    return [saved for saved in config.modules_to_save if any(name.endswith(saved) for name in names)] or None


def _resize_heads(module: nn.Module, config: Any, inside: StateDict) -> None:
    """Modules that come whole have the shapes of the file: another number of classes is for the caller to judge."""
    for name, tensor in inside.items():
        plain = name.removeprefix(PREFIX)
        if plain != name and is_saved(config, plain):
            path, _, last = plain.rpartition(".")
            owner = _module(module, path)
            old = getattr(owner, "_parameters", {}).get(last)
            if owner is not None and old is not None and old.shape != tensor.shape and old.dim() == tensor.dim():
                owner._parameters[last] = nn.Parameter(torch.empty(tensor.shape, dtype=old.dtype))


def _wrapped(place: Place, config: Any, inside: StateDict, folder: Path, base: str) -> Any:
    """The model under PEFT with the adapter's tensors, after their names and shapes were compared both ways."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    _check_patterns(config, inside, folder)
    with torch.random.fork_rng(devices=[]):
        adapted = wrap(place.module, copy.deepcopy(config))
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    whole = adapted.state_dict()
    needed = {**wanted, **{name: whole[name] for name in inside if name in whole and _is_embedding(adapted, name)}}
    shapes = [
        f"{name} is {tuple(inside[name].shape)}, needed {tuple(tensor.shape)}"
        for name, tensor in needed.items()
        if name in inside and inside[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} is {inside[name].dtype}, needed {tensor.dtype}"
        for name, tensor in needed.items()
        if name in inside and inside[name].is_floating_point() != tensor.is_floating_point()
    ]
    faults = {
        "missing": [name for name in wanted if name not in inside and _BEFORE not in name],
        "unexpected": [name for name in inside if name not in needed and _BEFORE not in name],
        "other shapes": shapes,
        "other kinds of numbers": kinds,
    }
    if any(faults.values()):
        raise mismatch(folder, base, faults)
    loaded = set_peft_model_state_dict(adapted, {name: inside.get(name, needed[name]) for name in needed})
    if loaded.unexpected_keys:
        raise mismatch(folder, base, {"unexpected": list(loaded.unexpected_keys)})
    return adapted


def _is_embedding(adapted: nn.Module, name: str) -> bool:
    """PEFT saves embeddings whole beside an adapter that targets them, or whose training enlarged the vocabulary."""
    path = name.removesuffix(".weight")
    plain = path.removesuffix(".base_layer").rpartition(".")[2]
    return path != name and (plain == "lm_head" or isinstance(_module(adapted, path), nn.Embedding))


def _check_patterns(config: Any, inside: StateDict, folder: Path) -> None:
    """PEFT passes over a rank or an alpha for modules that are not there."""
    modules = {part for name in inside for part in parents(name.removeprefix(PREFIX))}
    for title in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, title, None) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", part) for part in modules):
                raise CheckpointError(
                    f"the adapter in {folder} has an entry {pattern!r} of {title} for modules of which it holds no "
                    "tensors. Its adapter_config.json belongs to another adapter, or the name is misspelt."
                )


def _check_finite(module: nn.Module, names: list[str], folder: Path) -> None:
    for name in names:
        merged = _module(module, name)  # none where PEFT's layers were nested
        for key, tensor in ({} if merged is None else merged.state_dict()).items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"the adapter in {folder}, merged, gives NaN or Inf in {name}.{key}: its numbers or its scale are "
                    "too large, or the pretrained model holds NaN or Inf there."
                )


def _module(module: nn.Module, name: str) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


@contextmanager
def _of_peft(folder: Path, base: str) -> Iterator[None]:
    """PEFT's warnings are about training, or of what is checked here; its errors become ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FusionError:
        raise
    except Exception as error:  # each kind of adapter fails in its own way
        raise CheckpointError(f"the adapter in {folder} does not fit {base}: {first_line(error)}") from error
