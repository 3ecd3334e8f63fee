"""Adapters of linearised LoRA as they were published: every adapted layer was linearised by itself.

Around the start (A0, B0) of its adapter, the layer x -> (W + s B A) x becomes, in A and B,

    W + s (B0 A0 + (B - B0) A0 + B0 (A - A0)),

which multiplies x like any other weight: merged into the weights, the model computes the same. Merging A and B as an
ordinary adapter, W + s B A, would give another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError, KeyMismatch, NonFiniteError, StateDict
from fusionlib.zoo.adapter_config import ADAPTER_CONFIG, read_facts
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.weights import read_tensors

WEIGHTS = "linearized_adapter_model.safetensors"
_OTHER = ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save", "lora_bias")
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?:(?:model\.)?lora_(?P<part>[AB])(?:\.default)?\.weight|params0_values\.(?P<index>\d+))"
)


def is_linearized(folder: Path) -> bool:
    """Whether a folder holds a linearised adapter."""
    return (folder / WEIGHTS).is_file()


def merge_linearized(backbone: Backbone, folder: Path) -> StateDict:
    """The backbone's weights with the linearised adapter in ``folder`` added, float32, under the backbone's own keys.

    Raises:
        CheckpointError: its files are missing or unreadable, or the start of a layer's adapter is not in them.
        KeyMismatch: it is for layers that the backbone has not.
        NonFiniteError: it holds NaN or Inf.

    Source: Tang et al. 2023, "Parameter-efficient multi-task model fusion with partial linearization".
    Deviates: the authors' code keeps the layers linearised and differentiates them at every pass; this is the same
        function in closed form. The paper's equation 5 linearises the whole model in the adapters instead, see
        ``fusionlib.ops.linearized``.
    """
    rank, scale = _settings(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    starts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        if tensor.is_complex() or not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{folder / WEIGHTS} holds NaN, Inf or complex numbers in {name}. Copy it again.")
        match = _NAME.fullmatch(name)
        if match is None:
            raise KeyMismatch(f"{folder / WEIGHTS} holds {name!r}, which is no part of a linearised LoRA layer.")
        if match["part"]:
            parts.setdefault(match["module"], {})[match["part"]] = tensor.float()
        else:
            starts.setdefault(match["module"], {})[int(match["index"])] = tensor.float()
    merged = {name: tensor.clone() for name, tensor in backbone.state.items()}
    stray = sorted(set(starts) - set(parts))
    if stray or not parts:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds {'where ' + stray[0] + ' started, but not its' if stray else 'no'} A and B. "
            "Copy it again."
        )
    _check_targets(folder, parts, backbone)
    for module, found in parts.items():
        key = next((k for k in (f"{module}.weight", f"vision_model.{module}.weight") if k in merged), None)
        # the parameters of a layer in their order: those of the layer below, then A, then B
        begin = [tensor for _, tensor in sorted(starts.get(module, {}).items())][-2:]
        if len(found) != 2 or [each.shape for each in begin] != [found["A"].shape, found["B"].shape]:
            raise CheckpointError(f"{folder / WEIGHTS} lacks A, B, or where they started, of {module}. Copy it again.")
        if found["A"].dim() != 2 or found["B"].dim() != 2 or len(found["A"]) != rank or found["B"].shape[1] != rank:
            raise CheckpointError(
                f"{folder / WEIGHTS} holds A and B of {module} of shapes {tuple(found['A'].shape)} and "
                f"{tuple(found['B'].shape)}, but {ADAPTER_CONFIG} says rank {rank}. They belong to different adapters."
            )
        change = _tangent(found["A"], found["B"], *begin)
        if key is None or merged[key].shape != change.shape:
            raise KeyMismatch(
                f"the adapter in {folder} is for a layer {module} of shape {tuple(change.shape)}, which "
                f"{backbone.name!r} has not. Check that it was trained on this backbone."
            )
        merged[key] += scale * change
    return merged


def _tangent(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """B A linearised around (A0, B0)."""
    return torch.addmm(b0 @ (a - a0), b, a0)


def _check_targets(folder: Path, parts: Mapping[str, Any], backbone: Backbone) -> None:
    """All layers that the configuration names, and no others."""
    targets = read_facts(folder).get("target_modules")
    if not isinstance(targets, list):
        return
    ends = tuple(str(target) for target in targets)
    stray = [module for module in parts if module.rpartition(".")[2] not in ends]
    layers = [key.removesuffix(".weight") for key in backbone.state if key.endswith(".weight")]
    named = [layer for layer in layers if layer.rpartition(".")[2] in ends]
    lacking = [layer for layer in named if not {layer, layer.removeprefix("vision_model.")} & set(parts)]
    if stray or lacking:
        raise KeyMismatch(
            f"{folder / WEIGHTS} does not hold the layers that its {ADAPTER_CONFIG} names ({', '.join(ends)}) of "
            f"{backbone.name!r}: {'missing' if lacking else 'unexpected'}: {(lacking or stray)[0]}. Copy both again."
        )


def _settings(folder: Path) -> tuple[int, float]:
    """The rank, and what LoRA's update is multiplied by."""
    facts = read_facts(folder)
    rank, alpha = facts.get("r"), facts.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} has r {rank!r}, but a rank is a whole number above 0.")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} has lora_alpha {alpha!r}, which must be a number.")
    other = [name for name in _OTHER if facts.get(name)]
    if other:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} sets {', '.join(other)}, with which no linearised adapter was published; how "
            "to merge it is not known."
        )
    return rank, alpha / (math.sqrt(rank) if facts.get("use_rslora") is True else rank)
