"""Weights in a folder, in any of the layouts that transformers writes, and the comparison of their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError, KeyMismatch, StateDict

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def read_weights(folder: Path) -> StateDict:
    """All tensors of a checkpoint folder: one file or shards, safetensors first, else ``.bin`` without pickle code.

    Raises: CheckpointError if there are no weights, a shard is missing, or a file can't be read.
    """
    for name in _SINGLE:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    for name in _SHARDED:
        if (folder / name).is_file():
            return _read_shards(folder / name)
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{folder} holds no weights: one of {', '.join(_SINGLE + _SHARDED)} is needed, found: {found}. "
        "Save the model with save_pretrained."
    )


def read_tensors(path: Path) -> StateDict:
    """Tensors of one ``.safetensors`` or ``.bin`` file; CheckpointError if it can't be read."""
    loaded = read_plain(path)
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds something other than a state dict. Save the model with save_pretrained.")
    return dict(loaded)


def read_plain(path: Path) -> Any:
    """What one file holds, tensors and plain values alone: no code in it is run; CheckpointError otherwise."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}). Copy or make it again.") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} can't be read as a file of plain tensors ({type(error).__name__}: {error}). Copy it again or save "
            "the model with save_pretrained, which writes safetensors."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder; CheckpointError if it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}). Save the model with save_pretrained.") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is not a model's configuration. Save the model with save_pretrained.")
    return facts


def build_wanted(config: CLIPVisionConfig) -> StateDict:
    """Names and shapes of the weights of a vision tower with projection, on the meta device."""
    from transformers import CLIPVisionModelWithProjection

    with torch.device("meta"):
        return CLIPVisionModelWithProjection(config).state_dict()


def check_keys(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Raise KeyMismatch, naming keys and shapes, unless both have the same names with the same shapes."""
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, needed {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    parts = [
        f"{title}: {_some(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
        if names
    ]
    if parts:
        raise KeyMismatch(
            f"the weights in {where} don't fit the backbone. {'. '.join(parts)}. Only checkpoints with exactly the "
            "backbone's tensors can be used: check that it was fine-tuned from this backbone."
        )


def like(state: StateDict, wanted: Mapping[str, Tensor]) -> StateDict:
    """The tensors in the order of ``wanted``, floating-point ones in float32; counts of BatchNorm stay whole."""
    return {name: state[name].float() if state[name].is_floating_point() else state[name] for name in wanted}


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_shards(index: Path) -> StateDict:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error!r}). Copy or make it again.") from error
    state: StateDict = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, which {index.name} names as one of the shards. Copy it there.")
        state.update(read_tensors(path))
    absent = sorted(set(places) - set(state))
    if absent:
        raise CheckpointError(f"the shards of {index} lack tensors that it lists: {_some(absent)}. Copy them again.")
    return state
