"""Weights in a folder, in any of the layouts that transformers writes, and the comparison of their keys."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError, KeyMismatch, StateDict
from fusionlib.zoo.quantised import check_not_quantised, check_plain
from fusionlib.zoo.weight_files import check_header, inside, shards_of, some, weight_files

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

_logger = logging.getLogger("fusionlib.zoo")


def read_weights(folder: Path) -> StateDict:
    """All tensors of a checkpoint folder: the file or shards that transformers would read, without pickle code.

    Raises: CheckpointError if there are no weights, a shard is missing, a file can't be read, or they are quantised.
    """
    check_not_quantised(folder)
    path, *others = weight_files(folder)
    if others:
        names = ", ".join(other.name for other in others)
        _logger.warning("%s holds several sets of weights; %s is read, not %s.", folder, path.name, names)
    state = _read_shards(path) if path.suffix == ".json" else read_tensors(path)
    if not state:
        raise CheckpointError(f"{path} holds no tensors. Copy it again, or save the model with save_pretrained.")
    check_plain(state, str(path))
    return state


def read_tensors(path: Path) -> StateDict:
    """Tensors of one ``.safetensors`` or ``.bin`` file; CheckpointError if it can't be read."""
    loaded = read_plain(path)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(f"{path} holds something other than a state dict. Save the model with save_pretrained.")
    return dict(loaded)


def read_plain(path: Path) -> Any:
    """What one file holds, tensors and plain values alone: no code in it is run; CheckpointError otherwise."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
            check_header(path)
            return state
        # mapped into memory rather than copied; what torch wrote before 2020 is no zip file, which that needs
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file and cannot be read ({error}). Copy or make it again."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} can't be read as a file of plain tensors ({type(error).__name__}: {first_line(error)}). Copy it "
            "again or save the model with save_pretrained, which writes safetensors."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder; CheckpointError if it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
        f"{title}: {some(names)}"
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


def _read_shards(index: Path) -> StateDict:
    places = shards_of(index)
    state: StateDict = {}
    for name in sorted(set(places.values())):
        tensors = read_tensors(inside(index, name))
        twice = [key for key in tensors if key in state and not torch.equal(tensors[key], state[key])]
        if twice:
            raise CheckpointError(
                f"two shards of {index} hold different values of {some(twice)}, so shards of two models are mixed. "
                "Copy them again from one of them."
            )
        state.update(tensors)
    absent = sorted(set(places) - set(state))
    if absent:
        raise CheckpointError(f"the shards of {index} lack tensors that it lists: {some(absent)}. Copy them again.")
    return state


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or [""])[0]
