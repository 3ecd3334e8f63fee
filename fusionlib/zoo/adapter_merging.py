"""PEFT adapters merged into a module: the one way, in which each tensor of the file is accounted for.

PEFT itself loads what fits and is silent about the rest. Here the file must hold exactly the tensors that its
configuration asks of the model; what belongs to parts that the model has not (the head of a classifier, the text
tower of a CLIP) is handed back, and anything else is an error.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, FusionError, KeyMismatch, NonFiniteError, StateDict
from fusionlib.zoo.adapter_asked import PREFIX, check_patterns, is_asked, is_saved, neighbours, parents
from fusionlib.zoo.adapter_config import first_line, other_base, read_adapter_config
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
    place = _placed(model, found, folder, base)
    inside, beside = _divided(place, config, found, folder, base)
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


@dataclass(frozen=True)
class _Place:
    """Where the modules of an adapter are.

    Attributes:
        module: with the names that the adapter has for them.
        top: the names of its parts.
        config: of the model, from transformers, if it has one.
    """

    module: nn.Module
    top: frozenset[str]
    config: Any = field(repr=False, default=None)


def _placed(model: nn.Module, found: StateDict, folder: Path, base: str) -> _Place:
    """The model itself, a part of it, or a shell around it: whichever has most of the adapter's modules."""
    keys = [name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)]
    children = dict(model.named_children())
    config = getattr(model, "config", None)
    own = _prefixes(model)
    best = (_depth(keys, own), _Place(model, frozenset(own), config))
    for name in dict.fromkeys(key.partition(".")[0] for key in keys):
        depth = _depth([key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")], own)
        if name not in children and depth > best[0]:
            shell = nn.Module()
            shell.add_module(name, model)
            best = (depth, _Place(shell, frozenset([name]), config))
    for child in children.values():
        depth = _depth(keys, parts := _prefixes(child))
        if depth > best[0]:
            best = (depth, _Place(child, frozenset(parts), config))
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


def _divided(place: _Place, config: Any, found: StateDict, folder: Path, base: str) -> tuple[StateDict, StateDict]:
    """Tensors for the model, under the file's names, and those for other parts, which must be known parts."""
    inside: StateDict = {}
    beside: StateDict = {}
    for name, tensor in found.items():
        plain = name.removeprefix(PREFIX)
        if plain == name or plain.partition(".")[0] in place.top:
            inside[name] = tensor
        else:
            beside[plain] = tensor
    known = neighbours(place.config) if beside else frozenset()
    odd = [
        name
        for name in beside
        if not (is_saved(config, name) or (name.partition(".")[0] in known and is_asked(config, name)))
    ]
    if odd:
        raise _mismatch(folder, base, {"unexpected": [PREFIX + name for name in odd]})
    if not inside:
        raise KeyMismatch(
            f"the adapter in {folder} changes nothing of {base}: all its tensors are for other parts "
            f"({', '.join(list(beside)[:3])}, ...). Check that it was trained on this model."
        )
    return inside, beside


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


def _wrapped(place: _Place, config: Any, inside: StateDict, folder: Path, base: str) -> Any:
    """The model under PEFT with the adapter's tensors, after their names and shapes were compared both ways."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    check_patterns(config, inside, folder)
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
        raise _mismatch(folder, base, faults)
    loaded = set_peft_model_state_dict(adapted, {name: inside.get(name, needed[name]) for name in needed})
    if loaded.unexpected_keys:
        raise _mismatch(folder, base, {"unexpected": list(loaded.unexpected_keys)})
    return adapted


def _is_embedding(adapted: nn.Module, name: str) -> bool:
    """PEFT saves embeddings whole beside an adapter that targets them, or whose training enlarged the vocabulary."""
    path = name.removesuffix(".weight")
    plain = path.removesuffix(".base_layer").rpartition(".")[2]
    return path != name and (plain == "lm_head" or isinstance(_module(adapted, path), nn.Embedding))


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


def _mismatch(folder: Path, base: str, faults: dict[str, list[str]]) -> KeyMismatch:
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
